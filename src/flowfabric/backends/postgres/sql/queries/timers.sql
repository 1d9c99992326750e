-- The due-time index and housekeeping.

-- What is due: `$1` at most of each kind, `$2` ms at least since, the first `$3` of executions left to others. The last
-- row, without a kind, says when the next thing will be due, and what time it is.
-- name: due
WITH clock AS MATERIALIZED (SELECT ff.now_ms() AS now_ms)
(
    SELECT a.due_at_ms, a.due_kind, e.partition, e.id, NULL AS namespace, NULL AS instance, NULL::bigint AS now_ms
    FROM ff.agenda AS a
    -- Row by row: a merge would read everything that was created in between.
    CROSS JOIN LATERAL (SELECT x.partition, x.id FROM ff.execution AS x WHERE x.seq = a.seq LIMIT 1) AS e
    WHERE a.due_at_ms <= (SELECT now_ms - $2::bigint FROM clock)
    ORDER BY a.due_at_ms LIMIT $1::integer OFFSET $3::integer
)
UNION ALL
SELECT w.due_at_ms, 'worker_liveness', NULL, NULL, w.namespace, w.instance, NULL
FROM (
    SELECT due_at_ms, namespace, instance FROM ff.worker
    WHERE due_at_ms <= (SELECT now_ms - $2::bigint FROM clock) ORDER BY due_at_ms LIMIT $1::integer
) AS w
UNION ALL
SELECT least(
        (SELECT min(due_at_ms) FROM ff.agenda WHERE due_at_ms > now_ms - $2::bigint),
        (SELECT min(due_at_ms) FROM ff.worker WHERE due_at_ms > now_ms - $2::bigint)
    ), NULL, NULL, NULL, NULL, NULL, now_ms
FROM clock;

-- name: earliest
SELECT least(
    (SELECT min(due_at_ms) FROM ff.agenda WHERE due_at_ms IS NOT NULL),
    (SELECT min(due_at_ms) FROM ff.worker)
) AS due_at_ms, ff.now_ms() AS now_ms;

-- name: forget
SELECT ff.idempotency_forget($1::integer);
