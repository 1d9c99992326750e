-- Listing executions, newest first. Both pages take: $1 the row number below which they start, $2 how many entries may
-- be looked at, $3 how many are shown, $4 and $5 the lowest and highest uuid, $6 namespace, $7 lane, $8 kind, $9 vectors,
-- $10 and $11 the instants of creation, $12 the key of a tag and $13 its value.

-- name: page
-- One state of the store: what was looked at, and what of it is shown. Nothing shown is one row without an execution.
SELECT b.lowest, b.looked_at, b.oldest_ms, p.*
FROM (
    SELECT min(seq) AS lowest, count(*) AS looked_at,
        (SELECT created_at_ms FROM ff.execution WHERE seq = min(x.seq)) AS oldest_ms
    FROM (SELECT seq FROM ff.execution WHERE seq < $1 ORDER BY seq DESC LIMIT $2) AS x
) AS b
LEFT JOIN LATERAL (
    SELECT e.*, d.document
    FROM (SELECT * FROM ff.execution WHERE seq < $1 ORDER BY seq DESC LIMIT $2) AS e
    CROSS JOIN LATERAL (SELECT document FROM ff.definition WHERE seq = e.seq OFFSET 0) AS d
    WHERE ($4::uuid IS NULL OR e.id BETWEEN $4 AND $5::uuid)
        AND ($6::text IS NULL OR e.namespace = $6)
        AND ($7::text IS NULL OR e.lane = $7)
        AND ($8::text IS NULL OR e.kind = $8)
        AND ($9::smallint[] IS NULL OR e.vector = ANY ($9))
        AND ($10::bigint IS NULL OR e.created_at_ms >= $10)
        AND ($11::bigint IS NULL OR e.created_at_ms < $11)
        AND ($12::text IS NULL OR CASE WHEN $13::text IS NULL THEN e.tags ? $12 ELSE e.tags ->> $12 = $13 END)
    ORDER BY e.seq DESC
    LIMIT $3
) AS p ON true
ORDER BY p.seq DESC;

-- name: page_by_prefix
SELECT e.*, d.document
FROM (SELECT * FROM ff.execution WHERE id BETWEEN $4::uuid AND $5::uuid AND seq < $1 ORDER BY id LIMIT $2) AS e
CROSS JOIN LATERAL (SELECT document FROM ff.definition WHERE seq = e.seq OFFSET 0) AS d
WHERE ($6::text IS NULL OR e.namespace = $6)
    AND ($7::text IS NULL OR e.lane = $7)
    AND ($8::text IS NULL OR e.kind = $8)
    AND ($9::smallint[] IS NULL OR e.vector = ANY ($9))
    AND ($10::bigint IS NULL OR e.created_at_ms >= $10)
    AND ($11::bigint IS NULL OR e.created_at_ms < $11)
    AND ($12::text IS NULL OR CASE WHEN $13::text IS NULL THEN e.tags ? $12 ELSE e.tags ->> $12 = $13 END)
ORDER BY e.seq DESC
LIMIT $3;

-- name: count_prefix
SELECT count(*) FROM (SELECT FROM ff.execution WHERE id BETWEEN $1::uuid AND $2::uuid LIMIT $3) AS x;

-- name: first_since
-- The row number from which on everything was created at an instant or later; halves the range until it is found.
WITH RECURSIVE search (low, high) AS (
    SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) + 1 FROM ff.execution
    UNION ALL
    SELECT CASE WHEN m.is_later THEN s.low ELSE m.seq + 1 END, CASE WHEN m.is_later THEN m.seq ELSE s.high END
    FROM search AS s
    CROSS JOIN LATERAL (
        SELECT (s.low + s.high) / 2 AS seq, coalesce((
            SELECT e.created_at_ms >= $1 FROM ff.execution e WHERE e.seq <= (s.low + s.high) / 2
            ORDER BY e.seq DESC LIMIT 1
        ), false) AS is_later
    ) AS m
    WHERE s.low < s.high
)
SELECT high FROM search WHERE low = high LIMIT 1;
