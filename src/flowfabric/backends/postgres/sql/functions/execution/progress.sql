-- Store how far the attempt is; what is null keeps its value, giving nothing writes nothing. Answers the stored percent
-- and message.
-- Refuses: invalid_input execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Also touches: nothing.
CREATE FUNCTION ff.execution_progress(
    p_partition integer, p_id uuid, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    p_percent double precision, p_message text,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    was ff.execution;
    r ff.execution;
    now bigint;
    guarded record;
BEGIN
    IF p_percent NOT BETWEEN 0 AND 100 THEN
        code := 'invalid_input';
        message := 'percent is 0 to 100';
        details := '{"field": "percent"}';
        RETURN;
    END IF;
    was := ff._open(p_partition, p_id);
    IF was.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    now := greatest(ff.now_ms(), was.last_mutation_at_ms);
    guarded := ff._guard(was, now, p_lease_id, p_epoch, p_attempt_id, p_lane, p_route);
    IF guarded.code IS NOT NULL THEN
        PERFORM ff._store(was, guarded.r);
        code := guarded.code;
        message := guarded.message;
        details := guarded.details;
        RETURN;
    END IF;
    r := was;
    IF p_percent IS NOT NULL OR p_message IS NOT NULL THEN
        r.progress_percent := coalesce(p_percent, r.progress_percent);
        r.progress_message := coalesce(p_message, r.progress_message);
        r.progress_at_ms := now;
        r.last_mutation_at_ms := now;
        PERFORM ff._store(was, r);
    END IF;
    value := jsonb_build_array(r.progress_percent, r.progress_message);
END
$$;
