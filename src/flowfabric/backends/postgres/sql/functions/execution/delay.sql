-- Give the lease back and continue the same attempt at an instant; one in the past means now. Answers the public state
-- and the instant, if it is ahead.
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Also touches: nothing.
CREATE FUNCTION ff.execution_delay(
    p_partition integer, p_id uuid, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    p_digest text, p_actor text, p_delay_until_ms bigint,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    r ff.execution := ff._open(p_partition, p_id);
    now bigint := ff.now_ms();
    is_later boolean := p_delay_until_ms > now;
    done record;
BEGIN
    IF r.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    done := ff._pause(r, now, 'execution.delay', p_digest, 'worker_delay', p_actor, p_lease_id, p_epoch, p_attempt_id,
        p_lane, p_route,
        CASE WHEN is_later THEN ff.delayed_vector('waiting_for_delay', 'attempt_interrupted')
            ELSE ff.eligible_vector('attempt_interrupted') END,
        CASE WHEN is_later THEN p_delay_until_ms END);
    code := done.code;
    message := done.message;
    details := done.details;
    value := done.value;
END
$$;
