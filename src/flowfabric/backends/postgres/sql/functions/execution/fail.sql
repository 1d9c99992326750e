-- Fail the attempts of active executions; the retry policy decides whether another follows: one command per position,
-- each on another execution. Answers `retry_scheduled` with when and the count of retries, or `failed`.
-- Refuses: invalid_input execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Also touches: nothing.
CREATE FUNCTION ff.execution_fail(
    p_partitions integer[], p_ids uuid[], p_lease_ids uuid[], p_epochs bigint[], p_attempt_ids uuid[], p_lanes text[],
    p_routes text[], p_digests text[], p_actors text[], p_classes text[], p_categories text[], p_messages text[]
)
RETURNS TABLE (
    at integer, code text, message text, details jsonb, status text, delay_until_ms bigint, retry_count integer
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now bigint;
    was ff.execution;
    r ff.execution;
    guarded record;
    answer jsonb;
    i integer;
BEGIN
    FOR i IN SELECT c.at FROM unnest(p_ids) WITH ORDINALITY AS c (id, at) ORDER BY c.id LOOP
        at := i;
        code := NULL;
        message := NULL;
        details := NULL;
        status := NULL;
        delay_until_ms := NULL;
        retry_count := NULL;
        IF p_classes[i] IS NULL OR p_classes[i] NOT IN (@FAILURE_CLASSES@) THEN
            code := 'invalid_input';
            message := 'there is no such class of failures';
            details := '{"field": "failure_class"}';
            RETURN NEXT;
            CONTINUE;
        END IF;
        was := ff._open(p_partitions[i], p_ids[i]);
        IF was.id IS NULL THEN
            code := 'execution_not_found';
            details := ff._absent(p_partitions[i], p_ids[i]);
            RETURN NEXT;
            CONTINUE;
        END IF;
        v_now := greatest(ff.now_ms(), was.last_mutation_at_ms);
        answer := ff._repeated(was, 'execution.fail', p_lease_ids[i], p_epochs[i], p_attempt_ids[i], p_digests[i])::jsonb;
        IF answer IS NULL THEN
            guarded := ff._guard(was, v_now, p_lease_ids[i], p_epochs[i], p_attempt_ids[i], p_lanes[i], p_routes[i]);
            IF guarded.code IS NOT NULL THEN
                PERFORM ff._store(was, guarded.r);
                code := guarded.code;
                message := guarded.message;
                details := guarded.details;
                RETURN NEXT;
                CONTINUE;
            END IF;
            r := ff._fail(was, v_now, p_classes[i], p_categories[i], p_messages[i], p_actors[i]);
            IF r.vector IN (@TERMINAL@) THEN
                answer := '["failed"]';
            ELSE
                answer := jsonb_build_array('retry_scheduled', coalesce(r.not_before_ms, v_now), r.retry_count);
            END IF;
            r := ff._answered(r, 'execution.fail', p_lease_ids[i], p_epochs[i], p_digests[i], answer);
            PERFORM ff._store(was, r);
        END IF;
        status := answer ->> 0;
        delay_until_ms := (answer ->> 1)::bigint;
        retry_count := (answer ->> 2)::integer;
        RETURN NEXT;
    END LOOP;
END
$$;
