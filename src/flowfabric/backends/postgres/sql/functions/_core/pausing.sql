-- Giving the lease back to continue the same attempt later: what delay and wait_children share. Answers the public state
-- and the instant, if it is ahead. `p_now` is the store's time, which decided about `p_vector` and `p_not_before`.
CREATE FUNCTION ff._pause(
    r ff.execution, p_now bigint, p_operation text, p_digest text, p_reason text, p_actor text, p_lease_id uuid,
    p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text, p_vector smallint, p_not_before bigint,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    was ff.execution := r;
    now bigint := greatest(p_now, r.last_mutation_at_ms);
    guarded record;
BEGIN
    value := ff._repeated(r, p_operation, p_lease_id, p_epoch, p_attempt_id, p_digest)::jsonb;
    IF value IS NOT NULL THEN
        RETURN;
    END IF;
    guarded := ff._guard(r, now, p_lease_id, p_epoch, p_attempt_id, p_lane, p_route);
    IF guarded.code IS NOT NULL THEN
        PERFORM ff._store(was, guarded.r);
        code := guarded.code;
        message := guarded.message;
        details := guarded.details;
        RETURN;
    END IF;
    r := ff._happened(r, now, 'released', p_reason, NULL, p_actor);
    IF r.attempt_id IS NOT NULL THEN
        r.attempt_state := 'suspended';
        r.timeout_at_ms := NULL;
    END IF;
    r := ff._leave(r, p_vector, now);
    r.not_before_ms := p_not_before;
    value := jsonb_build_array(ff.public_state(p_vector), p_not_before);
    r := ff._answered(r, p_operation, p_lease_id, p_epoch, p_digest, value);
    PERFORM ff._store(was, r);
END
$$;
