-- Forget at most so many idempotency keys whose window is over; answers how many those were. One process at a time.
-- Refuses: nothing
CREATE FUNCTION ff.idempotency_forget(p_most integer) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := ff.now_ms();
    v_gone integer;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('ff.forget'), 0) THEN
        RETURN 0;
    END IF;
    DELETE FROM ff.idempotency WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM ff.idempotency
        WHERE expires_at_ms <= v_now ORDER BY expires_at_ms LIMIT p_most
        FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    RETURN v_gone;
END
$$;
