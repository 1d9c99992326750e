-- Writing executions and what belongs to them.

-- name: insert_execution
INSERT INTO execution (
    seq, uuid, partition, namespace, lane, kind, created_at_ms, route_id,
    public_state, ready_rank, eligible_since_ms, due_at_ms, due_kind, holder, claim_id, lost_at_ms, record
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_definition
INSERT INTO definition (seq, definition, input_type, input) VALUES (?, ?, ?, ?);

-- name: update_execution
UPDATE execution SET
    public_state = ?, ready_rank = ?, eligible_since_ms = ?, due_at_ms = ?, due_kind = ?, holder = ?, claim_id = ?,
    lost_at_ms = ?, record = ?
WHERE seq = ?;

-- name: reindex_execution
UPDATE execution SET
    public_state = ?, ready_rank = ?, eligible_since_ms = ?, due_at_ms = ?, due_kind = ?, holder = ?, claim_id = ?,
    lost_at_ms = ?
WHERE seq = ?;

-- name: insert_event
INSERT INTO event (id, seq, body) VALUES (?, ?, ?);

-- name: trim_events
DELETE FROM event
WHERE seq = ? AND id <= (SELECT id FROM event WHERE seq = ? ORDER BY id DESC LIMIT 1 OFFSET ?);

-- name: insert_attempt
INSERT INTO attempt (seq, attempt_index, attempt_id, record) VALUES (?, ?, ?, ?)
ON CONFLICT (seq, attempt_index) DO UPDATE SET attempt_id = excluded.attempt_id, record = excluded.record;

-- name: insert_result
INSERT INTO result (seq, content_type, data) VALUES (?, ?, ?)
ON CONFLICT (seq) DO UPDATE SET content_type = excluded.content_type, data = excluded.data;

-- name: delete_result
DELETE FROM result WHERE seq = ?;

-- name: streams
SELECT attempt_index, expires_at_ms, record FROM stream WHERE seq = ?;

-- name: store_stream
INSERT INTO stream (seq, attempt_index, expires_at_ms, record) VALUES (?, ?, ?, ?)
ON CONFLICT (seq, attempt_index) DO UPDATE SET expires_at_ms = excluded.expires_at_ms, record = excluded.record;

-- name: delete_frames_of
DELETE FROM frame WHERE seq = ? AND attempt_index = ?;

-- name: delete_frames
DELETE FROM frame WHERE seq = ?;

-- name: delete_streams
DELETE FROM stream WHERE seq = ?;

-- name: delete_events
DELETE FROM event WHERE seq = ?;

-- name: delete_attempts
DELETE FROM attempt WHERE seq = ?;

-- name: delete_definition
DELETE FROM definition WHERE seq = ?;

-- name: delete_execution
DELETE FROM execution WHERE seq = ?;
