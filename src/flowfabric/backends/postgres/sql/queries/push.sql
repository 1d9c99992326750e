-- Hearing of commits: what the listener's connection executes, and the look that makes up for what was not heard.

-- name: channel
SELECT rtrim('ff.', '.');

-- name: probe
SELECT pg_notify(rtrim('ff.', '.'), $1::text);

-- name: patience
SET lock_timeout = 50;

-- name: no_end
SET idle_session_timeout = 0;

-- Take sleepers' locks. A result of `covered`: from now on every commit that concerns it is told; `held`: from now on
-- every writer that begins tells, but others are under way; `busy`: a writer is just trying the lock.
-- name: hold
SELECT kind, bucket, CASE
    WHEN NOT pg_try_advisory_lock_shared(hashtext('ff.' || kind), bucket) THEN 'busy'
    WHEN NOT pg_try_advisory_lock(hashtext('ff.' || kind || '.writing'), bucket) THEN 'held'
    WHEN pg_advisory_unlock(hashtext('ff.' || kind || '.writing'), bucket) THEN 'covered'
    END AS state
FROM unnest($1::text[], $2::integer[]) AS wanted (kind, bucket);

-- The writers that were under way when the locks were taken have ended, or have not.
-- name: try_passed
SELECT kind, bucket, CASE
    WHEN NOT pg_try_advisory_lock(hashtext('ff.' || kind || '.writing'), bucket) THEN 'held'
    WHEN pg_advisory_unlock(hashtext('ff.' || kind || '.writing'), bucket) THEN 'covered'
    END AS state
FROM unnest($1::text[], $2::integer[]) AS wanted (kind, bucket);

-- As before, waiting for them: writers that begin meanwhile tell what they do.
-- name: wait_passed
SELECT CASE
    WHEN pg_advisory_lock(hashtext('ff.' || $1::text || '.writing'), $2::integer)::text = ''
        THEN pg_advisory_unlock(hashtext('ff.' || $1::text || '.writing'), $2::integer)
    END;

-- name: let_go
SELECT pg_advisory_unlock_shared(hashtext('ff.' || kind), bucket)
FROM unnest($1::text[], $2::integer[]) AS wanted (kind, bucket);

-- name: lead
SELECT pg_try_advisory_lock(hashtext('ff.' || $1::text), 0);

-- name: follow
SELECT pg_advisory_unlock(hashtext('ff.' || $1::text), 0);

-- Routes with claimable work on the lanes that claims sleep for, and how much there is, counted up to a number.
-- name: waiting_work
SELECT r.namespace, r.lane, r.kind, r.required, there.how_many
FROM unnest($1::text[], $2::text[]) AS asleep (namespace, lane)
JOIN ff.route AS r ON r.namespace = asleep.namespace AND r.lane = asleep.lane
LEFT JOIN ff.lane AS l ON l.lane = r.lane
CROSS JOIN LATERAL (
    SELECT count(*)::integer AS how_many
    FROM (SELECT 1 FROM ff.ready AS y WHERE y.route_id = r.id LIMIT $3) AS counted
) AS there
WHERE there.how_many > 0 AND coalesce(l.state, 'active') IN (@LANE_ACCEPTS_CLAIMS@);
