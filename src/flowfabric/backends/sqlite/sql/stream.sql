-- Appending frames and trimming old ones.

-- name: insert_frame
INSERT INTO frame (
    seq, attempt_index, ms, frame_seq, sequence, mode, frame_type, content_type, correlation_id, ttl_ms,
    summary_version, payload
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: oldest
SELECT ms, frame_seq FROM frame WHERE seq = ? AND attempt_index = ? AND mode = ? ORDER BY ms, frame_seq LIMIT ?;

-- name: delete_frame
DELETE FROM frame WHERE seq = ? AND attempt_index = ? AND ms = ? AND frame_seq = ?;
