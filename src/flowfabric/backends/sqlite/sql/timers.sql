-- The due-time index and housekeeping.

-- name: due
SELECT due_at_ms, due_kind, partition, uuid
FROM execution INDEXED BY execution_due
WHERE due_at_ms IS NOT NULL AND due_at_ms <= ? ORDER BY due_at_ms LIMIT ?;

-- name: workers_due
SELECT due_at_ms, namespace, instance FROM worker WHERE due_at_ms <= ? ORDER BY due_at_ms LIMIT ?;

-- name: later
SELECT
    (SELECT min(due_at_ms) FROM execution INDEXED BY execution_due WHERE due_at_ms IS NOT NULL AND due_at_ms > ?),
    (SELECT min(due_at_ms) FROM worker WHERE due_at_ms > ?);

-- name: forget_keys
DELETE FROM idempotency WHERE (namespace, key) IN (
    SELECT namespace, key FROM idempotency WHERE expires_at_ms <= ? ORDER BY expires_at_ms LIMIT ?
);

-- name: free_pages
PRAGMA freelist_count;

-- name: give_back
PRAGMA incremental_vacuum(500);
