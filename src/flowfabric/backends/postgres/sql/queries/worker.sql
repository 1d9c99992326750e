-- The worker registry.

-- name: page
SELECT w.namespace, w.instance, w.worker_id, w.liveness_ttl_ms, w.registered_at_ms, w.last_heartbeat_at_ms,
    w.expires_at_ms, w.lapsed_at_ms, w.details, ff.now_ms() AS now_ms,
    (SELECT count(*) FROM ff.agenda a WHERE a.holder = w.namespace || ' ' || w.instance) AS leases
FROM ff.worker w WHERE w.namespace = $1 AND w.instance > $2 ORDER BY w.instance LIMIT $3;

-- name: live
SELECT namespace, instance, worker_id, liveness_ttl_ms, registered_at_ms, last_heartbeat_at_ms, expires_at_ms,
    lapsed_at_ms, details
FROM ff.worker WHERE namespace = $1 AND lapsed_at_ms IS NULL AND expires_at_ms > $2 ORDER BY instance LIMIT $3;
