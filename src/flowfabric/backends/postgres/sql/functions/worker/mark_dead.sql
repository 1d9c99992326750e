-- Take an instance out of the registry and expire its leases at once, at most `p_limit` of them. Answers whether it was
-- registered, how many leases were looked at and how many expired: repeat while as many were looked at as may be.
-- Also touches: executions that the instance holds.
CREATE FUNCTION ff.worker_mark_dead(
    p_namespace text, p_instance text, p_reason text, p_limit integer,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now bigint := ff.now_ms();
    instant bigint;
    was ff.execution;
    was_known boolean;
    looked_at integer := 0;
    expired integer := 0;
BEGIN
    DELETE FROM ff.worker w WHERE w.namespace = p_namespace AND w.instance = p_instance;
    was_known := FOUND;
    FOR was IN
        SELECT e.* FROM ff.execution e
        WHERE e.seq = ANY (ARRAY(
            SELECT a.seq FROM ff.agenda a WHERE a.holder = p_namespace || ' ' || p_instance LIMIT p_limit))
        ORDER BY e.id FOR UPDATE
    LOOP
        looked_at := looked_at + 1;
        CONTINUE WHEN ff._holder(was) IS DISTINCT FROM p_namespace || ' ' || p_instance;
        instant := greatest(now, was.last_mutation_at_ms);
        PERFORM ff._store(was, ff._lose(was, instant, false, instant, p_reason, false));
        expired := expired + 1;
    END LOOP;
    value := jsonb_build_array(was_known, looked_at, expired);
END
$$;
