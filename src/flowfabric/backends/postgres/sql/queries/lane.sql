-- Lanes.

-- name: page
SELECT x.lane, coalesce(l.state, 'active') AS state,
    least(l.created_at_ms, r.created_at_ms) AS created_at_ms,
    coalesce(l.changed_at_ms, r.created_at_ms) AS changed_at_ms, r.routes
FROM (
    (SELECT lane FROM ff.lane WHERE lane > $1 ORDER BY lane LIMIT $2)
    UNION
    (SELECT DISTINCT lane FROM ff.route WHERE lane > $1 ORDER BY lane LIMIT $2)
    ORDER BY lane LIMIT $2
) AS x
LEFT JOIN ff.lane AS l ON l.lane = x.lane
CROSS JOIN LATERAL (
    SELECT count(DISTINCT route) AS routes, min(created_at_ms) AS created_at_ms FROM ff.route WHERE lane = x.lane
) AS r
ORDER BY x.lane;
