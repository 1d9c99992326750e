-- Reading everything, a page of executions at a time, to compare it with what it should be.

-- name: integrity
PRAGMA integrity_check(20);

-- name: count
SELECT count(*) FROM execution;

-- name: page
SELECT
    e.seq, e.uuid, e.partition, e.namespace, e.lane, e.kind, e.created_at_ms, e.route_id,
    e.public_state, e.ready_rank, e.eligible_since_ms, e.due_at_ms, e.due_kind, e.holder, e.claim_id, e.lost_at_ms,
    e.record, d.definition,
    (SELECT count(*) FROM result WHERE result.seq = e.seq),
    r.namespace, r.lane, r.route
FROM execution AS e
LEFT JOIN definition AS d ON d.seq = e.seq
LEFT JOIN route AS r ON r.id = e.route_id
WHERE e.seq > ? ORDER BY e.seq LIMIT ?;

-- name: attempts
SELECT attempt_index, attempt_id, record FROM attempt WHERE seq = ? ORDER BY attempt_index;

-- name: events
SELECT id, body FROM event WHERE seq = ? ORDER BY id;

-- name: streams
SELECT attempt_index, expires_at_ms, record FROM stream WHERE seq = ? ORDER BY attempt_index;

-- name: frames
SELECT ms, frame_seq, sequence, mode FROM frame WHERE seq = ? AND attempt_index = ? ORDER BY ms, frame_seq;

-- name: frames_elsewhere
SELECT count(*) FROM frame
WHERE seq = ? AND attempt_index NOT IN (SELECT attempt_index FROM stream WHERE stream.seq = frame.seq);

-- name: keys
SELECT i.namespace, i.key, i.execution_id, i.digest
FROM idempotency AS i WHERE (i.namespace, i.key) > (?, ?) ORDER BY i.namespace, i.key LIMIT ?;

-- name: orphan_definitions
SELECT seq FROM definition WHERE seq NOT IN (SELECT seq FROM execution) LIMIT 20;

-- name: orphan_results
SELECT seq FROM result WHERE seq NOT IN (SELECT seq FROM execution) LIMIT 20;

-- name: orphan_attempts
SELECT DISTINCT seq FROM attempt WHERE seq NOT IN (SELECT seq FROM execution) LIMIT 20;

-- name: orphan_events
SELECT DISTINCT seq FROM event WHERE seq NOT IN (SELECT seq FROM execution) LIMIT 20;

-- name: orphan_streams
SELECT DISTINCT seq FROM stream WHERE seq NOT IN (SELECT seq FROM execution) LIMIT 20;

-- name: orphan_frames
SELECT DISTINCT seq FROM frame WHERE seq NOT IN (SELECT seq FROM execution) LIMIT 20;

-- name: store
SELECT clock_ms, event_id, coalesce((SELECT max(id) FROM event), 0) FROM store WHERE id = 1;

-- name: lanes_missing
SELECT DISTINCT lane FROM route WHERE lane NOT IN (SELECT lane FROM lane) LIMIT 20;

-- name: workers
SELECT namespace, instance, due_at_ms, record FROM worker;
