-- Reading attempts: the latest is part of its execution.

-- name: list
SELECT a.*
FROM ff.execution e
LEFT JOIN LATERAL (
    (
        SELECT y.attempt_index, y.attempt_id, y.attempt_type, y.attempt_state, y.attempt_started_at_ms, y.worker_id,
            y.worker_instance, y.attempt_epoch, y.timeout_at_ms, y.previous_attempt_index, y.attempt_ended_at_ms,
            y.attempt_failure, y.stream_closed_at_ms, y.stream_closed_reason
        FROM ff.attempt y
        WHERE y.seq = e.seq AND y.attempt_index >= $3::bigint
        ORDER BY y.attempt_index
        LIMIT $4
    )
    UNION ALL
    SELECT e.attempt_index, e.attempt_id, e.attempt_type, e.attempt_state, e.attempt_started_at_ms, e.worker_id,
        e.worker_instance, e.attempt_epoch, e.timeout_at_ms, e.previous_attempt_index, e.attempt_ended_at_ms,
        e.attempt_failure, e.stream_closed_at_ms, e.stream_closed_reason
    WHERE e.attempt_id IS NOT NULL AND e.attempt_index >= $3::bigint
    ORDER BY 1
    LIMIT $4
) a ON true
WHERE e.partition = $1 AND e.id = $2
ORDER BY a.attempt_index
