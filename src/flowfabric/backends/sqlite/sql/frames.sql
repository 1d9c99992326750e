-- Reading frames of one attempt, after a place and up to another.

-- name: all
SELECT
    ms, frame_seq, sequence, mode, frame_type, content_type, correlation_id, ttl_ms, summary_version, payload
FROM frame
WHERE seq = ? AND attempt_index = ? AND (ms, frame_seq) > (?, ?) AND (ms, frame_seq) <= (?, ?)
ORDER BY ms, frame_seq LIMIT ?;

-- name: lossless
SELECT
    ms, frame_seq, sequence, mode, frame_type, content_type, correlation_id, ttl_ms, summary_version, payload
FROM frame
WHERE seq = ? AND attempt_index = ? AND (ms, frame_seq) > (?, ?) AND (ms, frame_seq) <= (?, ?)
    AND mode <> 'best_effort'
ORDER BY ms, frame_seq LIMIT ?;

-- name: attempts_from
SELECT record FROM attempt WHERE seq = ? AND attempt_index >= ? ORDER BY attempt_index LIMIT ?;
