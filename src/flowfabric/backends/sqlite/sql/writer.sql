-- The transaction around a group of operations.

-- name: begin
BEGIN IMMEDIATE;

-- name: commit
COMMIT;

-- name: rollback
ROLLBACK;

-- name: data_version
PRAGMA data_version;

-- name: read_store
SELECT clock_ms, event_id FROM store WHERE id = 1;

-- name: write_store
UPDATE store SET clock_ms = ?, event_id = ? WHERE id = 1;

-- name: last_seq
SELECT max(seq) FROM execution;
