-- Hand an execution back: claimable at once, as a new attempt, without counting towards the cap. Answers true.
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Also touches: a lease whose time is over is recorded as lost.

CREATE FUNCTION ff.lease_release(
    p_partition integer, p_id uuid, p_lease_id uuid, p_lease_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    p_reason text,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    r ff.execution;
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    guarded record;
BEGIN
    IF was.seq IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    value := ff._repeated(was, 'lease.release', p_lease_id, p_lease_epoch, p_attempt_id, '')::jsonb;
    IF value IS NOT NULL THEN
        RETURN;
    END IF;
    guarded := ff._guard(was, now, p_lease_id, p_lease_epoch, p_attempt_id, p_lane, p_route);
    r := guarded.r;
    code := guarded.code;
    message := guarded.message;
    details := guarded.details;
    IF code IS NULL THEN
        value := '[true]';
        r := ff._answered(r, 'lease.release', p_lease_id, p_lease_epoch, '', value);
        r := ff._lose(r, now, true, now, p_reason, true);
    END IF;
    PERFORM ff._store(was, r);
END
$$;
