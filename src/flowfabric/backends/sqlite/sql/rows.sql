-- Loading one execution and what belongs to it.

-- name: find
SELECT e.seq, e.route_id, d.definition, e.record
FROM execution AS e JOIN definition AS d ON d.seq = e.seq
WHERE e.uuid = ?;

-- name: load_seq
SELECT e.route_id, d.definition, e.record
FROM execution AS e JOIN definition AS d ON d.seq = e.seq
WHERE e.seq = ?;

-- name: load_input
SELECT input_type, input FROM definition WHERE seq = ?;

-- name: load_result
SELECT content_type, data FROM result WHERE seq = ?;

-- name: load_former
SELECT record FROM attempt WHERE seq = ? AND attempt_id = ?;

-- name: load_attempt
SELECT record FROM attempt WHERE seq = ? AND attempt_index = ?;

-- name: load_stream
SELECT record FROM stream WHERE seq = ? AND attempt_index = ?;
