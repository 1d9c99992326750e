-- Executions: what is not loading or applying.

-- name: stream_expiries
SELECT expires_at_ms FROM stream WHERE seq = ? AND expires_at_ms IS NOT NULL;
