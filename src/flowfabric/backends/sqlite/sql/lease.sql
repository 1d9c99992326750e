-- Lost leases and lease history.

-- name: lost_page
SELECT page.lost_at_ms, page.uuid, d.definition, e.record
FROM (
    SELECT seq, lost_at_ms, uuid, namespace
    FROM execution INDEXED BY execution_lost
    WHERE lost_at_ms IS NOT NULL AND (lost_at_ms, uuid) > (?, ?)
    ORDER BY lost_at_ms, uuid LIMIT ?
) AS page
CROSS JOIN execution AS e ON e.seq = page.seq
CROSS JOIN definition AS d ON d.seq = page.seq
WHERE ? IS NULL OR page.namespace = ?
ORDER BY page.lost_at_ms, page.uuid
LIMIT ?;

-- name: lost_last
SELECT lost_at_ms, uuid
FROM execution INDEXED BY execution_lost
WHERE lost_at_ms IS NOT NULL AND (lost_at_ms, uuid) > (?, ?)
ORDER BY lost_at_ms, uuid LIMIT 1 OFFSET ?;

-- name: history_page
SELECT id, body FROM event WHERE seq = ? AND id > ? ORDER BY id LIMIT ?;
