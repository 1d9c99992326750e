-- Apply attempt timeouts (failures under the retry policy) and deadlines (the end), each if it is due: one execution per
-- position. Answers what was done.
-- Refuses: invalid_input execution_not_found
-- Also touches: nothing.
CREATE FUNCTION ff.execution_expire(p_partitions integer[], p_ids uuid[], p_reasons text[])
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
        message := NULL;
        details := NULL;
        status := NULL;
        IF p_reasons[i] IS NULL OR p_reasons[i] NOT IN ('attempt_timeout', 'execution_deadline') THEN
            code := 'invalid_input';
            message := 'nothing expires for this reason';
            details := '{"field": "reason"}';
            RETURN NEXT;
            CONTINUE;
        END IF;
        was := ff._open(p_partitions[i], p_ids[i]);
        v_now := greatest(ff.now_ms(), was.last_mutation_at_ms);
        IF was.id IS NULL THEN
            code := 'execution_not_found';
            details := ff._absent(p_partitions[i], p_ids[i]);
        ELSIF was.vector IN (@TERMINAL@) THEN
            status := 'already_terminal';
        ELSIF p_reasons[i] = 'attempt_timeout' THEN
            IF was.vector = @LEASED@ AND was.timeout_at_ms <= v_now THEN
                r := ff._fail(was, v_now, 'timeout', 'attempt_timeout', 'the attempt ran longer than its policy allows',
                    'system_timeout');
                PERFORM ff._store(was, r);
                status := CASE WHEN r.vector IN (@TERMINAL@) THEN 'failed' ELSE 'retry_scheduled' END;
            ELSE
                status := 'not_due';
            END IF;
        ELSIF was.deadline_at_ms <= v_now THEN
            r := ff._expire_at_deadline(was, v_now);
            PERFORM ff._store(was, r);
            status := 'expired';
        ELSE
            status := 'not_due';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
