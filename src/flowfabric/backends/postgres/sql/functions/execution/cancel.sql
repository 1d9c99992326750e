-- Cancel an execution that has not ended. Without `p_overrides` the holder of the lease cancels, with its fence while the
-- execution is active; with it an operator or the system does. Answers whether it was cancelled before.
-- Refuses: execution_not_found execution_not_active fence_required lease_revoked lease_expired stale_lease
-- Also touches: nothing.
CREATE FUNCTION ff.execution_cancel(
    p_partition integer, p_id uuid, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    p_overrides boolean, p_reason text, p_cancelled_by text, p_actor text,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    r ff.execution := was;
    refusal record;
BEGIN
    IF was.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    IF r.vector IN (@TERMINAL@) THEN
        IF ff.outcome(r.vector) = 'cancelled' THEN
            value := '[true]';
            RETURN;
        END IF;
        refusal := ff._not_active(r);
        code := refusal.code;
        message := refusal.message;
        details := refusal.details;
        RETURN;
    END IF;
    IF NOT p_overrides THEN
        IF p_lease_id IS NOT NULL THEN
            refusal := ff._guard(r, now, p_lease_id, p_epoch, p_attempt_id, p_lane, p_route);
            IF refusal.code IS NOT NULL THEN
                PERFORM ff._store(was, refusal.r);
                code := refusal.code;
                message := refusal.message;
                details := refusal.details;
                RETURN;
            END IF;
        ELSIF r.vector IN (@ACTIVE@) THEN
            code := 'fence_required';
            message := 'an active execution is cancelled by its lease''s holder with the fence, or by an operator';
            RETURN;
        END IF;
    END IF;
    r := ff._happened(r, now, CASE WHEN r.vector = @LEASED@ THEN 'released' ELSE 'ended' END, 'cancelled', 'cancelled',
        p_actor);
    r := ff._finish(r, 'cancelled', now, NULL, ARRAY['cancelled', 'cancelled', p_reason]);
    r.cancel_reason := p_reason;
    r.cancelled_by := p_cancelled_by;
    PERFORM ff._store(was, r);
    value := '[false]';
END
$$;
