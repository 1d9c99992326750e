-- Reading leases.

-- name: input
SELECT d.seq, d.input FROM ff.definition d WHERE d.seq = ANY ($1::bigint[])

-- name: definition
SELECT d.document, d.input_type, d.input FROM ff.definition d WHERE d.seq = $1

-- name: grantable
SELECT y.id, e.partition
FROM unnest($1::integer[]) AS x (route_id)
CROSS JOIN LATERAL (
    SELECT r.id, r.seq, r.rank, r.eligible_since_ms FROM ff.ready r
    WHERE r.route_id = x.route_id
    ORDER BY r.rank, r.eligible_since_ms, r.id
    LIMIT $2
) y
JOIN ff.execution e ON e.seq = y.seq
ORDER BY y.rank, y.eligible_since_ms, y.id
LIMIT $2

-- name: newest_route
SELECT coalesce(max(r.revision), 0) FROM ff.route r

-- name: lost
SELECT a.lost_at_ms, a.id, e.partition, e.namespace, e.lease_id, e.lease_epoch, e.worker_instance, e.attempt_index,
    e.lost_reason, e.lost_at_ms IS NOT DISTINCT FROM a.lost_at_ms AS is_current
FROM (
    SELECT g.seq, g.id, g.lost_at_ms FROM ff.agenda g
    WHERE g.lost_at_ms IS NOT NULL AND (g.lost_at_ms, g.id) > ($1::bigint, $2::uuid)
    ORDER BY g.lost_at_ms, g.id
    LIMIT $3
) a
JOIN ff.execution e ON e.seq = a.seq
ORDER BY a.lost_at_ms, a.id

-- name: history
SELECT e.history_count, v.*
FROM ff.execution e
LEFT JOIN LATERAL (
    SELECT * FROM ff.event y
    WHERE y.seq = e.seq AND y.n > greatest($3::bigint, e.history_count - @HISTORY_KEPT@)
    ORDER BY y.n
    LIMIT $4
) v ON true
WHERE e.partition = $1 AND e.id = $2
ORDER BY v.n
