-- Listing executions, newest first.

-- name: page
SELECT page.seq, d.definition, e.record
FROM (
    SELECT seq, uuid, namespace, lane, kind, public_state, created_at_ms
    FROM execution WHERE seq < :before ORDER BY seq DESC LIMIT :looked_at
) AS page
CROSS JOIN execution AS e ON e.seq = page.seq
CROSS JOIN definition AS d ON d.seq = page.seq
WHERE (:low IS NULL OR page.uuid BETWEEN :low AND :high)
    AND (:namespace IS NULL OR page.namespace = :namespace)
    AND (:lane IS NULL OR page.lane = :lane)
    AND (:kind IS NULL OR page.kind = :kind)
    AND (:public_state IS NULL OR page.public_state = :public_state)
    AND (:created_from_ms IS NULL OR page.created_at_ms >= :created_from_ms)
    AND (:created_before_ms IS NULL OR page.created_at_ms < :created_before_ms)
    AND (:tag_path IS NULL OR CASE
        WHEN :tag_value IS NULL THEN json_type(CAST(e.record AS TEXT), :tag_path) IS NOT NULL
        ELSE json_extract(CAST(e.record AS TEXT), :tag_path) = :tag_value END)
ORDER BY page.seq DESC
LIMIT :page;

-- name: looked_at
SELECT min(seq), count(*) FROM (SELECT seq FROM execution WHERE seq < ? ORDER BY seq DESC LIMIT ?);

-- name: count_prefix
SELECT count(*) FROM (SELECT 1 FROM execution WHERE uuid BETWEEN ? AND ? LIMIT ?);

-- name: page_by_prefix
SELECT e.seq, d.definition, e.record
FROM execution AS e JOIN definition AS d ON d.seq = e.seq
WHERE e.uuid BETWEEN :low AND :high AND e.seq < :before
    AND (:namespace IS NULL OR e.namespace = :namespace)
    AND (:lane IS NULL OR e.lane = :lane)
    AND (:kind IS NULL OR e.kind = :kind)
    AND (:public_state IS NULL OR e.public_state = :public_state)
    AND (:created_from_ms IS NULL OR e.created_at_ms >= :created_from_ms)
    AND (:created_before_ms IS NULL OR e.created_at_ms < :created_before_ms)
    AND (:tag_path IS NULL OR CASE
        WHEN :tag_value IS NULL THEN json_type(CAST(e.record AS TEXT), :tag_path) IS NOT NULL
        ELSE json_extract(CAST(e.record AS TEXT), :tag_path) = :tag_value END)
ORDER BY e.seq DESC
LIMIT :page;

-- name: newest
SELECT max(seq) FROM execution;

-- name: created_at
SELECT created_at_ms FROM execution WHERE seq <= ? ORDER BY seq DESC LIMIT 1;
