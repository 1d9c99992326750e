-- Reading streams. One statement sees one state of the store: what a page says of the end and of what is gone is as old
-- as its frames.

-- A page: the execution, its attempts from `after` on with what is gone of their streams, and frames after a place
-- (attempt, ms, seq) up to another. $1, $2: partition and id; $3 to $5: after; $6 to $8: until; $9: most frames;
-- $10: without lossy ones; $11: bytes of payloads, passed by one frame at most.
-- name: look
SELECT
    execution.vector,
    execution.completed_at_ms,
    execution.stream_closed_reason,
    attempts.*,
    frames.*
FROM ff.execution AS execution
LEFT JOIN LATERAL (
    SELECT
        array_agg(attempt.attempt_index) AS attempt_indexes,
        array_agg(attempt.attempt_id) AS attempt_ids,
        array_agg(attempt.attempt_type) AS attempt_types,
        array_agg(attempt.worker_instance) AS worker_instances,
        array_agg(attempt.attempt_started_at_ms) AS started_at_ms,
        array_agg(attempt.stream_closed_at_ms) AS streams_closed_at_ms,
        array_agg(attempt.stream_closed_reason) AS streams_closed_reasons,
        array_agg(attempt.trimmed_ms) AS trimmed_ms,
        array_agg(attempt.trimmed_seq) AS trimmed_seq
    FROM (
        SELECT begun.*, stream.trimmed_ms, stream.trimmed_seq
        FROM (
            (
                SELECT
                    attempt_index, attempt_id, attempt_type, worker_instance, attempt_started_at_ms,
                    stream_closed_at_ms, stream_closed_reason
                FROM ff.attempt
                WHERE seq = execution.seq AND attempt_index >= $3 AND attempt_index <= $6
                ORDER BY attempt_index
                LIMIT $9::bigint + 1
            )
            UNION ALL
            SELECT
                execution.attempt_index, execution.attempt_id, execution.attempt_type, execution.worker_instance,
                execution.attempt_started_at_ms, execution.stream_closed_at_ms, execution.stream_closed_reason
            WHERE execution.attempt_index >= $3 AND execution.attempt_index <= $6
        ) AS begun
        LEFT JOIN ff.stream AS stream ON stream.seq = execution.seq AND stream.attempt_index = begun.attempt_index
        -- However they are joined, a page goes on from attempt to attempt.
        ORDER BY begun.attempt_index
    ) AS attempt
) AS attempts ON true
LEFT JOIN LATERAL (
    SELECT
        array_agg(frame.attempt_index) AS frame_attempts,
        array_agg(frame.ms) AS frame_ms,
        array_agg(frame.frame_seq) AS frame_seq,
        array_agg(frame.sequence) AS sequences,
        array_agg(frame.mode) AS modes,
        array_agg(frame.frame_type) AS frame_types,
        array_agg(frame.content_type) AS content_types,
        array_agg(frame.correlation_id) AS correlation_ids,
        array_agg(frame.ttl_ms) AS ttl_ms,
        array_agg(frame.summary_version) AS summary_versions,
        array_agg(frame.payload) AS payloads
    FROM (
        SELECT
            *,
            sum(octet_length(payload)) OVER (
                ORDER BY attempt_index, ms, frame_seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
            ) - octet_length(payload) AS before
        FROM (
            SELECT
                attempt_index, ms, frame_seq, sequence, mode, frame_type, content_type, correlation_id, ttl_ms,
                summary_version, payload
            FROM ff.frame
            WHERE seq = execution.seq
                AND (attempt_index, ms, frame_seq) > ($3::integer, $4::bigint, $5::bigint)
                AND (attempt_index, ms, frame_seq) <= ($6::integer, $7::bigint, $8::bigint)
                AND (NOT $10::boolean OR mode <> 'best_effort')
            ORDER BY attempt_index, ms, frame_seq
            LIMIT $9::bigint
        ) AS wanted
    ) AS frame
    WHERE frame.before < $11::bigint
) AS frames ON true
WHERE execution.partition = $1 AND execution.id = $2;

-- name: summary
SELECT
    stream.last_sequence,
    stream.version,
    stream.first_applied_at_ms,
    stream.last_updated_at_ms,
    stream.document
FROM ff.execution AS execution
LEFT JOIN ff.stream AS stream ON stream.seq = execution.seq AND stream.attempt_index = $3
WHERE execution.partition = $1 AND execution.id = $2;
