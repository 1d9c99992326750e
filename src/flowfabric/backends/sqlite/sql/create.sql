-- Repeated creates.

-- name: is_known
SELECT 1 FROM execution WHERE uuid = ?;

-- name: find_key
SELECT execution_id, digest FROM idempotency WHERE namespace = ? AND key = ? AND expires_at_ms > ?;

-- name: remember_key
INSERT INTO idempotency (namespace, key, execution_id, digest, expires_at_ms) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (namespace, key) DO UPDATE SET
    execution_id = excluded.execution_id, digest = excluded.digest, expires_at_ms = excluded.expires_at_ms;
