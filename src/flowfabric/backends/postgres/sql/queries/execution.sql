-- Reads of one execution: $1 its partition, $2 its uuid.

-- name: load
SELECT e.*, d.document FROM ff.execution e JOIN ff.definition d ON d.seq = e.seq
    WHERE e.partition = $1 AND e.id = $2;

-- name: describe
SELECT e.*, d.document, l.state AS lane_state, ff.now_ms() AS read_at_ms
    FROM ff.execution e JOIN ff.definition d ON d.seq = e.seq LEFT JOIN ff.lane l ON l.lane = e.lane
    WHERE e.partition = $1 AND e.id = $2;

-- name: state
SELECT vector FROM ff.execution WHERE partition = $1 AND id = $2;

-- name: context
SELECT e.*, d.document, d.input_type, d.input FROM ff.execution e JOIN ff.definition d ON d.seq = e.seq
    WHERE e.partition = $1 AND e.id = $2;

-- name: result
SELECT e.*, d.document, o.content_type, o.data
    FROM ff.execution e JOIN ff.definition d ON d.seq = e.seq LEFT JOIN ff.result o ON o.seq = e.seq AND e.has_result
    WHERE e.partition = $1 AND e.id = $2;
