-- Make delayed executions eligible, each if it is due: one execution per position. Answers what was done.
-- Refuses: execution_not_found
-- Also touches: nothing.
CREATE FUNCTION ff.execution_promote(p_partitions integer[], p_ids uuid[])
RETURNS TABLE (at integer, code text, message text, details jsonb, status text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now bigint;
    was ff.execution;
    r ff.execution;
    i integer;
BEGIN
    FOR i IN SELECT c.at FROM unnest(p_ids) WITH ORDINALITY AS c (id, at) ORDER BY c.id LOOP
        at := i;
        code := NULL;
        details := NULL;
        status := NULL;
        was := ff._open(p_partitions[i], p_ids[i]);
        v_now := greatest(ff.now_ms(), was.last_mutation_at_ms);
        IF was.id IS NULL THEN
            code := 'execution_not_found';
            details := ff._absent(p_partitions[i], p_ids[i]);
        ELSIF ff.eligibility(was.vector) <> 'not_eligible_until_time' THEN
            status := 'not_delayed';
        ELSIF was.not_before_ms > v_now THEN
            status := 'not_due';
        ELSE
            r := was;
            r.vector := ff.eligible_vector(ff.attempt_of(r.vector));
            r.not_before_ms := NULL;
            r.last_mutation_at_ms := v_now;
            PERFORM ff._store(was, r);
            status := 'promoted';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
