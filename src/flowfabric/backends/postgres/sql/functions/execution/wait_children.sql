-- Give the lease back until all it depends on is done; an execution outside a flow depends on nothing, so the same
-- attempt is eligible at once. Answers the public state, and null.
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Also touches: nothing.
CREATE FUNCTION ff.execution_wait_children(
    p_partition integer, p_id uuid, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    p_actor text,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    r ff.execution := ff._open(p_partition, p_id);
    done record;
BEGIN
    IF r.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    done := ff._pause(r, ff.now_ms(), 'execution.wait_children', '', 'waiting_children', p_actor, p_lease_id, p_epoch,
        p_attempt_id, p_lane, p_route, ff.eligible_vector('attempt_interrupted'), NULL);
    code := done.code;
    message := done.message;
    details := done.details;
    value := done.value;
END
$$;
