-- Count renewals of leases as heartbeats; instances that are not registered, or lapsed, stay so.
CREATE FUNCTION ff.worker_renewed(
    p_namespaces text[], p_instances text[], OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now bigint := ff.now_ms();
    soonest bigint;
BEGIN
    WITH alive AS (
        SELECT w.namespace, w.instance FROM ff.worker w
        JOIN (SELECT DISTINCT i.namespace, i.instance FROM unnest(p_namespaces, p_instances) AS i(namespace, instance)) i
            ON w.namespace = i.namespace AND w.instance = i.instance
        WHERE w.lapsed_at_ms IS NULL AND w.expires_at_ms > now
        ORDER BY w.namespace, w.instance
        FOR NO KEY UPDATE OF w
    ), kept AS (
        UPDATE ff.worker w SET last_heartbeat_at_ms = now, expires_at_ms = now + w.liveness_ttl_ms,
            due_at_ms = now + w.liveness_ttl_ms
        FROM alive a WHERE w.namespace = a.namespace AND w.instance = a.instance
        RETURNING w.due_at_ms
    )
    SELECT min(k.due_at_ms) INTO soonest FROM kept k;
    PERFORM ff._announce_due(soonest);
    value := '[]';
END
$$;
