-- Choosing eligible work. Every statement reads one route's index from its head.

-- name: heads
SELECT ready_rank, eligible_since_ms, uuid, seq
FROM execution INDEXED BY execution_ready
WHERE route_id = ? AND ready_rank IS NOT NULL
ORDER BY ready_rank, eligible_since_ms, uuid
LIMIT ?;

-- name: best
SELECT e.seq, d.definition, e.record, d.input_type, d.input, e.route_id
FROM execution AS e INDEXED BY execution_ready CROSS JOIN definition AS d ON d.seq = e.seq
WHERE e.route_id = ? AND e.ready_rank IS NOT NULL
ORDER BY e.ready_rank, e.eligible_since_ms, e.uuid
LIMIT ?;

-- name: load
SELECT e.seq, d.definition, e.record, d.input_type, d.input, e.route_id
FROM execution AS e CROSS JOIN definition AS d ON d.seq = e.seq
WHERE e.seq = ?;

-- name: claimed
SELECT e.seq, d.definition, e.record, d.input_type, d.input, e.route_id
FROM execution AS e INDEXED BY execution_holder CROSS JOIN definition AS d ON d.seq = e.seq
WHERE e.holder = ? AND e.claim_id = ?
LIMIT ?;
