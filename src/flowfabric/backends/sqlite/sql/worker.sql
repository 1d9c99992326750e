-- The worker registry.

-- name: find
SELECT record FROM worker WHERE namespace = ? AND instance = ?;

-- name: store
INSERT INTO worker (namespace, instance, due_at_ms, record) VALUES (?, ?, ?, ?)
ON CONFLICT (namespace, instance) DO UPDATE SET due_at_ms = excluded.due_at_ms, record = excluded.record;

-- name: remove
DELETE FROM worker WHERE namespace = ? AND instance = ?;

-- name: page
SELECT record FROM worker WHERE namespace = ? AND instance > ? ORDER BY instance LIMIT ?;

-- name: of_namespace
SELECT record FROM worker WHERE namespace = ? ORDER BY instance LIMIT ?;

-- name: held_by
SELECT seq FROM execution WHERE holder = ? LIMIT ?;

-- name: count_held
SELECT count(*) FROM execution WHERE holder = ?;
