-- Attempts that a newer one superseded.

-- name: page
SELECT record FROM attempt WHERE seq = ? AND attempt_index > ? ORDER BY attempt_index LIMIT ?;
