-- Change the priority of an execution that has not ended; its index entry moves with it. Answers the previous one.
-- Refuses: execution_not_found execution_not_eligible
-- Also touches: nothing.
CREATE FUNCTION ff.execution_change_priority(
    p_partition integer, p_id uuid, p_priority integer,
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
    IF r.vector IN (@TERMINAL@) THEN
        code := 'execution_not_eligible';
        message := 'the execution has ended';
        details := ff._not_eligible(r);
        RETURN;
    END IF;
    r.priority := p_priority;
    r.last_mutation_at_ms := greatest(ff.now_ms(), r.last_mutation_at_ms);
    PERFORM ff._store(was, r);
    value := jsonb_build_array(was.priority);
END
$$;
