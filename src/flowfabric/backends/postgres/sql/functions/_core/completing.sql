-- Completing one execution, step by step: what does not go together with others. It may be a repetition, refused, or done by
-- who needs no fence.
CREATE FUNCTION ff._complete_one(
    p_partition integer, p_id uuid, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    p_digest text, p_actor text, p_type text, p_result bytea,
    OUT code text, OUT message text, OUT details jsonb, OUT completed_at_ms bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    r ff.execution;
    guarded record;
    answer text;
BEGIN
    IF was.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    answer := ff._repeated(was, 'execution.complete', p_lease_id, p_epoch, p_attempt_id, p_digest);
    IF answer IS NOT NULL THEN
        completed_at_ms := (answer::jsonb ->> 0)::bigint;
        RETURN;
    END IF;
    guarded := ff._guard(was, now, p_lease_id, p_epoch, p_attempt_id, p_lane, p_route);
    IF guarded.code IS NOT NULL THEN
        PERFORM ff._store(was, guarded.r);
        code := guarded.code;
        message := guarded.message;
        details := guarded.details;
        RETURN;
    END IF;
    r := ff._happened(was, now, 'released', 'completed', 'success', p_actor);
    r := ff._finish(r, 'success', now, NULL, NULL);
    r.has_result := p_type IS NOT NULL;
    IF r.has_result THEN
        INSERT INTO ff.result (seq, content_type, data) VALUES (r.seq, p_type, p_result);
    END IF;
    completed_at_ms := now;
    r := ff._answered(r, 'execution.complete', p_lease_id, p_epoch, p_digest, jsonb_build_array(now));
    PERFORM ff._store(was, r);
END
$$;
