-- Reading everything, a page of executions at a time, to compare it with what it should be. A page is all rows whose
-- `seq` is above $1 and at most $2; its statements run in one snapshot. What they return is what is wrong, or what has to
-- be looked at one by one: an execution whose rows are certainly as they should be is `plain` and returns its definition
-- only.

-- name: total
SELECT CASE
    WHEN c.reltuples > 100000 THEN c.reltuples::bigint
    ELSE (SELECT count(*) FROM ff.execution)
END
FROM pg_class AS c WHERE c.oid = 'ff.execution'::regclass;

-- name: page_end
SELECT max(p.seq), count(*) FROM (
    SELECT seq FROM ff.execution WHERE seq > $1 ORDER BY seq LIMIT $2
) AS p;

-- name: page
-- Every execution of a page with its definition and what functions know of it. `plain` is exact the one way only:
-- everything beside its definition holds. It knows two shapes: waiting and never claimed, ended in its first attempt.
WITH happened AS (
    SELECT
        seq, count(*) AS events, min(n) AS first, max(lease_epoch) AS epoch,
        bool_and(CASE n
            WHEN 1 THEN name = 'acquired' AND outcome IS NULL
            WHEN 2 THEN name = 'released' AND outcome IS NOT NULL
            ELSE false
        END) AS plain,
        max(at_ms) FILTER (WHERE n = 1) AS taken_at_ms, max(at_ms) FILTER (WHERE n = 2) AS ended_at_ms
    FROM ff.event WHERE seq > $1 AND seq <= $2 GROUP BY seq
)
SELECT
    e.seq, e.id::text, e.partition, d.document, e.total_attempt_count,
    coalesce(
        e.has_result = (r.seq IS NOT NULL)
        AND (NOT e.has_result OR ff.outcome(e.vector) = 'success')
        AND e.retry_count = 0 AND e.reclaim_count = 0 AND e.replay_count = 0 AND e.replays IS NULL
        AND e.lease_id IS NULL AND e.claim_id IS NULL AND e.lost_at_ms IS NULL AND e.grant_purpose IS NULL
        AND e.reclaim_at_ms IS NULL AND NOT e.reclaim_ready AND e.stream_due_at_ms IS NULL
        AND (e.failure IS NULL OR (cardinality(e.failure) = 3 AND e.failure[1] IN (@FAILURE_CLASSES@)))
        AND (e.tags IS NULL OR jsonb_typeof(e.tags) = 'object')
        AND NOT EXISTS (SELECT FROM ff.attempt AS a WHERE a.seq = e.seq)
        AND NOT EXISTS (SELECT FROM ff.stream AS s WHERE s.seq = e.seq)
        AND CASE
            WHEN e.vector IN (@RUNNABLE@) THEN
                e.total_attempt_count = 0 AND e.attempt_id IS NULL AND e.lease_epoch = 0
                AND e.history_count = 0 AND h.seq IS NULL AND e.completed_at_ms IS NULL
                AND (ff._ready(e) OR e.not_before_ms IS NOT NULL OR e.deadline_at_ms IS NOT NULL
                    OR ff.eligibility(e.vector) LIKE 'blocked\_by\_%')
            WHEN e.vector IN (@TERMINAL@) THEN
                e.completed_at_ms IS NOT NULL AND e.retention_due_at_ms IS NOT NULL
                AND e.total_attempt_count = 1 AND e.attempt_id IS NOT NULL AND e.attempt_index = 0
                AND e.attempt_type = 'initial' AND e.attempt_state IN (@ATTEMPT_ENDED@)
                AND e.attempt_ended_at_ms IS NOT NULL AND e.previous_attempt_index IS NULL
                AND e.stream_closed_at_ms IS NOT NULL
                AND e.stream_closed_reason IN ('attempt_success', 'attempt_failure', 'attempt_cancelled')
                AND (e.attempt_failure IS NULL
                    OR (cardinality(e.attempt_failure) = 3 AND e.attempt_failure[1] IN (@FAILURE_CLASSES@)))
                AND e.attempt_epoch = 1 AND e.lease_epoch = 1 AND h.epoch = 1
                AND e.history_count = 2 AND h.events = 2 AND h.first = 1 AND h.plain
                AND h.taken_at_ms <= h.ended_at_ms
            ELSE false
        END,
        false
    ) AS plain,
    -- What follows has an order: see fsck_page.
    e.namespace, e.lane, e.kind, e.route, d.digest, e.absolute_deadline_ms, o.required,
    coalesce(o.namespace = e.namespace AND o.lane = e.lane AND o.route = e.route AND o.kind = e.kind, false) AS routed,
    e.max_retries, e.backoff_kind, e.backoff_delay_ms, e.backoff_max_ms, e.backoff_multiplier, e.backoff_jitter,
    e.retryable_categories, e.attempt_timeout_ms, e.relative_deadline_ms, e.max_reclaim_count, e.reclaim_grace_ms,
    e.max_replay_count, e.retention_ms, e.frames_ttl_ms, e.frames_maxlen
FROM ff.execution AS e
LEFT JOIN ff.definition AS d ON d.seq = e.seq AND d.seq > $1 AND d.seq <= $2
LEFT JOIN ff.route AS o ON o.id = e.route_id
LEFT JOIN ff.result AS r ON r.seq = e.seq AND r.seq > $1 AND r.seq <= $2
LEFT JOIN happened AS h ON h.seq = e.seq
WHERE e.seq > $1 AND e.seq <= $2 ORDER BY e.seq;

-- name: entries
-- Executions of a page whose index entries are not what follows from the record.
SELECT
    e.seq, e.id::text, e.partition,
    ff._ready(e) AS ready, q.seq AS has_ready,
    t.kind AS due_kind, t.at_ms AS due_at_ms, a.due_kind AS has_due_kind, a.due_at_ms AS has_due_at_ms,
    ff._holder(e) AS holder, a.holder AS has_holder,
    CASE WHEN ff._holder(e) IS NOT NULL THEN e.claim_id END::text AS claim_id, a.claim_id::text AS has_claim_id,
    ff._lost(e) AS lost_at_ms, a.lost_at_ms AS has_lost_at_ms,
    a.id IS NULL OR a.id = e.id AS named
FROM ff.execution AS e
CROSS JOIN LATERAL ff._timer(e) AS t
LEFT JOIN ff.agenda AS a ON a.seq = e.seq AND a.seq > $1 AND a.seq <= $2
LEFT JOIN ff.ready AS q
    ON q.route_id = e.route_id AND q.rank = -e.priority AND q.eligible_since_ms = e.eligible_since_ms AND q.id = e.id
WHERE e.seq > $1 AND e.seq <= $2 AND (
    q.seq IS DISTINCT FROM CASE WHEN ff._ready(e) THEN e.seq END
    OR t.kind IS DISTINCT FROM a.due_kind OR t.at_ms IS DISTINCT FROM a.due_at_ms
    OR ff._holder(e) IS DISTINCT FROM a.holder
    OR CASE WHEN ff._holder(e) IS NOT NULL THEN e.claim_id END IS DISTINCT FROM a.claim_id
    OR ff._lost(e) IS DISTINCT FROM a.lost_at_ms
    OR a.id <> e.id
)
ORDER BY e.seq LIMIT 1000;

-- name: strays
-- Rows beside the executions of a page that belong to none of them. The last page has no upper end.
SELECT DISTINCT f.what, f.seq FROM (
    SELECT 'definition' AS what, s.seq FROM ff.definition AS s WHERE s.seq > $1 AND s.seq <= $2
        AND NOT EXISTS (SELECT FROM ff.execution AS e WHERE e.seq = s.seq AND e.seq > $1 AND e.seq <= $2) UNION ALL
    SELECT 'result' AS what, s.seq FROM ff.result AS s WHERE s.seq > $1 AND s.seq <= $2
        AND NOT EXISTS (SELECT FROM ff.execution AS e WHERE e.seq = s.seq AND e.seq > $1 AND e.seq <= $2) UNION ALL
    SELECT 'attempt' AS what, s.seq FROM ff.attempt AS s WHERE s.seq > $1 AND s.seq <= $2
        AND NOT EXISTS (SELECT FROM ff.execution AS e WHERE e.seq = s.seq AND e.seq > $1 AND e.seq <= $2) UNION ALL
    SELECT 'event' AS what, s.seq FROM ff.event AS s WHERE s.seq > $1 AND s.seq <= $2
        AND NOT EXISTS (SELECT FROM ff.execution AS e WHERE e.seq = s.seq AND e.seq > $1 AND e.seq <= $2) UNION ALL
    SELECT 'stream' AS what, s.seq FROM ff.stream AS s WHERE s.seq > $1 AND s.seq <= $2
        AND NOT EXISTS (SELECT FROM ff.execution AS e WHERE e.seq = s.seq AND e.seq > $1 AND e.seq <= $2) UNION ALL
    SELECT 'frame' AS what, s.seq FROM ff.frame AS s WHERE s.seq > $1 AND s.seq <= $2
        AND NOT EXISTS (SELECT FROM ff.execution AS e WHERE e.seq = s.seq AND e.seq > $1 AND e.seq <= $2) UNION ALL
    SELECT 'agenda' AS what, s.seq FROM ff.agenda AS s WHERE s.seq > $1 AND s.seq <= $2
        AND NOT EXISTS (SELECT FROM ff.execution AS e WHERE e.seq = s.seq AND e.seq > $1 AND e.seq <= $2)
) AS f ORDER BY f.seq, f.what LIMIT 1000;

-- name: frames_elsewhere
SELECT f.seq, e.id::text, e.partition, count(*) FROM ff.frame AS f
JOIN ff.execution AS e ON e.seq = f.seq
WHERE f.seq > $1 AND f.seq <= $2 AND NOT EXISTS (
    SELECT FROM ff.stream AS s WHERE s.seq = f.seq AND s.attempt_index = f.attempt_index
)
GROUP BY f.seq, e.id, e.partition ORDER BY f.seq LIMIT 1000;

-- name: executions
-- Executions with their definition and what the functions say of their index entries.
SELECT
    e.*, d.document, ff._ready(e) AS entry_ready, t.kind AS entry_due_kind, t.at_ms AS entry_due_at_ms,
    ff._holder(e) AS entry_holder, CASE WHEN ff._holder(e) IS NOT NULL THEN e.claim_id END AS entry_claim_id,
    ff._lost(e) AS entry_lost_at_ms
FROM ff.execution AS e CROSS JOIN LATERAL ff._timer(e) AS t LEFT JOIN ff.definition AS d ON d.seq = e.seq
WHERE e.seq = ANY($1::bigint[]) ORDER BY e.seq;

-- name: attempts
SELECT * FROM ff.attempt WHERE seq = ANY($1::bigint[]) ORDER BY seq, attempt_index;

-- name: events
SELECT
    seq, n, at_ms, name, reason, lease_id::text, lease_epoch, attempt_id::text, attempt_index, worker_instance,
    outcome, actor
FROM ff.event WHERE seq = ANY($1::bigint[]) ORDER BY seq, n;

-- name: streams
SELECT * FROM ff.stream WHERE seq = ANY($1::bigint[]) ORDER BY seq, attempt_index;

-- name: frames
SELECT ms, frame_seq, sequence, mode FROM ff.frame
WHERE seq = $1 AND attempt_index = $2 AND (ms, frame_seq) > ($3, $4)
ORDER BY ms, frame_seq LIMIT $5;

-- name: results
SELECT seq FROM ff.result WHERE seq = ANY($1::bigint[]);

-- name: ready
-- Entries of the eligible index, and whether they are those of their execution; in pages by their key.
SELECT
    q.route_id, q.rank, q.eligible_since_ms, q.id::text, q.seq,
    e.seq IS NOT NULL AS exists,
    coalesce(
        e.seq = q.seq AND ff._ready(e) AND e.route_id = q.route_id AND -e.priority = q.rank
        AND e.eligible_since_ms = q.eligible_since_ms,
        false
    ) AS sound,
    e.partition
FROM ff.ready AS q LEFT JOIN ff.execution AS e ON e.id = q.id
WHERE (q.route_id, q.rank, q.eligible_since_ms, q.id) > ($1::integer, $2::integer, $3::bigint, $4::uuid)
ORDER BY q.route_id, q.rank, q.eligible_since_ms, q.id LIMIT $5;

-- name: keys
-- Idempotency keys whose execution is there; in pages by their key. A key outlives its execution.
SELECT i.namespace, i.key, i.id::text, i.partition, i.digest, e.partition AS has_partition, d.digest AS has_digest, d.document
FROM ff.idempotency AS i
LEFT JOIN ff.execution AS e ON e.id = i.id
LEFT JOIN ff.definition AS d ON d.seq = e.seq
WHERE (i.namespace, i.key) > ($1::text, $2::text) ORDER BY i.namespace, i.key LIMIT $3;

-- name: numbering
-- What the sequence gives out next may not be taken.
SELECT s.last_value, (SELECT max(e.seq) FROM ff.execution AS e) FROM ff.execution_seq AS s;

-- name: routes_unsettled
SELECT o.id FROM ff.route AS o
WHERE o.revision IS NULL OR o.revision > (SELECT last_value FROM ff.route_revision) ORDER BY o.id LIMIT 1000;

-- name: workers
SELECT w.namespace, w.instance FROM ff.worker AS w
WHERE w.due_at_ms <> coalesce(w.lapsed_at_ms + @WORKER_KEPT_AFTER_LAPSE_MS@, w.expires_at_ms)
ORDER BY w.namespace, w.instance LIMIT 1000;

-- name: lock
-- Repair: whatever changes an execution's index entries holds its row, so whoever holds it sees and makes what is so.
SELECT e.seq FROM ff.execution AS e WHERE e.seq = ANY($1::bigint[]) ORDER BY e.id FOR UPDATE;

-- name: drop_ready
-- Repair: remove entries of the eligible index, unless they are those of their execution by now.
DELETE FROM ff.ready AS q
USING unnest($1::integer[], $2::integer[], $3::bigint[], $4::uuid[]) AS s (route_id, rank, eligible_since_ms, id)
WHERE q.route_id = s.route_id AND q.rank = s.rank AND q.eligible_since_ms = s.eligible_since_ms AND q.id = s.id
    AND NOT EXISTS (
        SELECT FROM ff.execution AS e
        WHERE e.id = q.id AND e.seq = q.seq AND ff._ready(e) AND e.route_id = q.route_id AND -e.priority = q.rank
            AND e.eligible_since_ms = q.eligible_since_ms
    );

-- name: drop_wrong_ready
-- Repair: remove the entries that executions which cannot be claimed have at their own place.
DELETE FROM ff.ready AS q USING ff.execution AS e
WHERE e.seq = ANY($1::bigint[]) AND NOT ff._ready(e) AND q.route_id = e.route_id AND q.rank = -e.priority
    AND q.eligible_since_ms = e.eligible_since_ms AND q.id = e.id;

-- name: add_ready
INSERT INTO ff.ready (route_id, rank, eligible_since_ms, id, seq)
SELECT e.route_id, -e.priority, e.eligible_since_ms, e.id, e.seq
FROM ff.execution AS e WHERE e.seq = ANY($1::bigint[]) AND ff._ready(e)
ON CONFLICT (route_id, rank, eligible_since_ms, id) DO UPDATE SET seq = excluded.seq;

-- name: drop_agenda
DELETE FROM ff.agenda WHERE seq = ANY($1::bigint[]);

-- name: add_agenda
INSERT INTO ff.agenda (seq, due_at_ms, due_kind, holder, claim_id, lost_at_ms, id)
SELECT
    e.seq, t.at_ms, t.kind, ff._holder(e), CASE WHEN ff._holder(e) IS NOT NULL THEN e.claim_id END, ff._lost(e), e.id
FROM ff.execution AS e CROSS JOIN LATERAL ff._timer(e) AS t
WHERE e.seq = ANY($1::bigint[]) AND (t.at_ms IS NOT NULL OR ff._holder(e) IS NOT NULL OR ff._lost(e) IS NOT NULL);

-- name: announce_ready
SELECT ff._announce_work(e.route_id, count(*)::integer)
FROM ff.execution AS e WHERE e.seq = ANY($1::bigint[]) AND ff._ready(e) GROUP BY e.route_id;

-- name: announce_due
SELECT ff._announce_due(min(t.at_ms))
FROM ff.execution AS e CROSS JOIN LATERAL ff._timer(e) AS t
WHERE e.seq = ANY($1::bigint[]) AND t.at_ms IS NOT NULL;
