-- Let a blocked execution run; it keeps its place in the order. Answers public state and blocking reason.
-- Refuses: execution_not_found execution_not_eligible
-- Also touches: nothing.
CREATE FUNCTION ff.execution_unblock(
    p_partition integer, p_id uuid, p_expected_reason text,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    r ff.execution := was;
BEGIN
    IF was.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    IF ff.eligibility(r.vector) NOT IN (@UNBLOCKABLE@) THEN
        message := 'the execution is not blocked';
    ELSIF ff.blocking(r.vector) <> p_expected_reason THEN
        message := 'the execution is blocked for another reason';
    END IF;
    IF message IS NOT NULL THEN
        code := 'execution_not_eligible';
        details := ff._not_eligible(r);
        RETURN;
    END IF;
    r.vector := ff.eligible_vector(ff.attempt_of(r.vector));
    r.blocking_detail := NULL;
    r.last_mutation_at_ms := greatest(ff.now_ms(), r.last_mutation_at_ms);
    PERFORM ff._store(was, r);
    value := jsonb_build_array(ff.public_state(r.vector), ff.blocking(r.vector));
END
$$;
