-- Extend live leases, one per execution. A renewal counts as the heartbeat of its worker.
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Also touches: the worker, when it is registered and alive; a lease whose time is over is recorded as lost.
-- Rows are locked in the order of ids. What needs no more than new instants is written at once, the rest one by one.

CREATE FUNCTION ff.lease_renew(
    p_partitions integer[],
    p_ids uuid[],
    p_lease_ids uuid[],
    p_lease_epochs bigint[],
    p_attempt_ids uuid[],
    p_lanes text[],
    p_routes text[],
    p_ttls bigint[]
) RETURNS TABLE (
    at integer,
    code text,
    message text,
    details jsonb,
    expires_at_ms bigint,
    ttl_ms bigint
)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode TO force_generic_plan
SET enable_seqscan TO off
SET enable_bitmapscan TO off
SET enable_hashjoin TO off
SET enable_mergejoin TO off
AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := ff.now_ms();
    v_workers text[] := '{}';
    v_kind text;
    v_worker text;
    v_seq bigint;
    v_due_at bigint;
    v_next_due bigint;
BEGIN
    FOR at, v_kind, v_seq, v_worker, expires_at_ms, ttl_ms, v_due_at IN
        WITH held AS MATERIALIZED (
            SELECT c.*, e.*
            FROM (
                SELECT g.*
                FROM unnest(p_partitions, p_ids, p_lease_ids, p_lease_epochs, p_attempt_ids, p_lanes, p_routes, p_ttls)
                    WITH ORDINALITY AS g (
                        partition, asked_id, asked_lease, asked_epoch, asked_attempt, asked_lane, asked_route, asked_ttl,
                        at
                    )
                ORDER BY g.asked_id
            ) c
            LEFT JOIN LATERAL (
                SELECT
                    e.seq, e.id, e.vector, e.lease_id, e.lease_epoch, e.attempt_id, e.attempt_index, e.lane, e.route,
                    e.namespace, e.worker_instance, e.history_count, e.deadline_at_ms, e.timeout_at_ms,
                    e.stream_due_at_ms, e.expires_at_ms, e.claim_id, coalesce(c.asked_ttl, e.ttl_ms) AS ttl_ms,
                    greatest(v_now, e.last_mutation_at_ms) AS instant
                FROM ff.execution e
                WHERE e.id = c.asked_id AND e.partition = c.partition
                FOR UPDATE
            ) e ON true
        ), chosen AS MATERIALIZED (
            SELECT
                h.*,
                CASE
                    WHEN h.seq IS NULL THEN 'absent'
                    WHEN h.vector = @LEASED@ AND h.lease_id = h.asked_lease AND h.lease_epoch = h.asked_epoch
                        AND h.attempt_id = h.asked_attempt AND (h.lane = h.asked_lane) IS NOT FALSE
                        AND (h.route = h.asked_route) IS NOT FALSE AND h.expires_at_ms > h.instant
                        AND h.history_count < @HISTORY_KEPT@ THEN 'renewed'
                    ELSE 'other'
                END AS kind,
                h.instant + h.ttl_ms AS until_ms,
                least(h.deadline_at_ms, h.timeout_at_ms, h.instant + h.ttl_ms, h.stream_due_at_ms) AS due_at_ms
            FROM held h
        ), written AS (
            UPDATE ff.execution e SET
                ttl_ms = c.ttl_ms,
                expires_at_ms = c.until_ms,
                renewed_at_ms = c.instant,
                last_mutation_at_ms = c.instant,
                history_count = c.history_count + 1
            FROM chosen c
            WHERE e.seq = c.seq AND c.kind = 'renewed'
        ), noted AS (
            INSERT INTO ff.event (seq, n, at_ms, name, lease_id, lease_epoch, attempt_id, attempt_index,
                worker_instance)
            SELECT c.seq, c.history_count + 1, c.instant, 'renewed', c.lease_id, c.lease_epoch, c.attempt_id,
                c.attempt_index, c.worker_instance
            FROM chosen c
            WHERE c.kind = 'renewed'
        ), timed AS (
            INSERT INTO ff.agenda AS a (seq, due_at_ms, due_kind, holder, claim_id, id)
            SELECT
                c.seq,
                c.due_at_ms,
                CASE c.due_at_ms
                    WHEN c.deadline_at_ms THEN 'execution_deadline'
                    WHEN c.timeout_at_ms THEN 'attempt_timeout'
                    WHEN c.until_ms THEN 'lease_expiry'
                    ELSE 'retention'
                END,
                c.namespace || ' ' || c.worker_instance,
                c.claim_id,
                c.id
            FROM chosen c
            WHERE c.kind = 'renewed'
            ON CONFLICT (seq) DO UPDATE SET due_at_ms = excluded.due_at_ms, due_kind = excluded.due_kind
        )
        SELECT
            c.at::integer, c.kind, c.seq, c.namespace || ' ' || c.worker_instance, c.until_ms, c.ttl_ms,
            -- Only an earlier instant than before is news to timers.
            CASE WHEN c.until_ms < c.expires_at_ms THEN c.due_at_ms END
        FROM chosen c
    LOOP
        IF v_kind = 'renewed' THEN
            v_next_due := least(v_next_due, v_due_at);
        ELSIF v_kind = 'absent' THEN
            code := 'execution_not_found';
            details := ff._absent(p_partitions[at], p_ids[at]);
        ELSE
            SELECT s.code, s.message, s.details, s.expires_at_ms, s.ttl_ms
                INTO code, message, details, expires_at_ms, ttl_ms
                FROM ff._renew(v_seq, v_now, p_lease_ids[at], p_lease_epochs[at], p_attempt_ids[at], p_lanes[at],
                    p_routes[at], p_ttls[at]) s;
        END IF;
        IF code IS NULL AND v_worker <> ALL (v_workers) THEN
            v_workers := v_workers || v_worker;
        END IF;
        RETURN NEXT;
        code := NULL;
        message := NULL;
        details := NULL;
    END LOOP;
    IF v_workers <> '{}' THEN
        PERFORM ff._renewed_workers(v_workers, v_now);
    END IF;
    IF v_next_due IS NOT NULL THEN
        PERFORM ff._announce_due(v_next_due);
    END IF;
END
$$;

-- Extend one lease, or refuse.
CREATE FUNCTION ff._renew(
    p_seq bigint, p_now bigint, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    p_ttl_ms bigint,
    OUT code text, OUT message text, OUT details jsonb, OUT expires_at_ms bigint, OUT ttl_ms bigint
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    was ff.execution;
    r ff.execution;
    now bigint;
    guarded record;
BEGIN
    SELECT * INTO was FROM ff.execution e WHERE e.seq = p_seq FOR UPDATE;
    now := greatest(p_now, was.last_mutation_at_ms);
    guarded := ff._guard(was, now, p_lease_id, p_epoch, p_attempt_id, p_lane, p_route);
    r := guarded.r;
    code := guarded.code;
    message := guarded.message;
    details := guarded.details;
    IF code IS NULL THEN
        r.ttl_ms := coalesce(p_ttl_ms, r.ttl_ms);
        r.expires_at_ms := now + r.ttl_ms;
        r.renewed_at_ms := now;
        r.last_mutation_at_ms := now;
        r := ff._happened(r, now, 'renewed', NULL, NULL, NULL);
        expires_at_ms := r.expires_at_ms;
        ttl_ms := r.ttl_ms;
    END IF;
    PERFORM ff._store(was, r);
END
$$;

-- Count renewals as heartbeats; instances (`<namespace> <instance>`) that are not registered, or lapsed, stay so. One
-- that is being written just now is passed over: whoever does that knows that it lives, or has found it dead.
CREATE FUNCTION ff._renewed_workers(p_workers text[], p_now bigint) RETURNS void
LANGUAGE sql VOLATILE AS $$
    UPDATE ff.worker w SET
        last_heartbeat_at_ms = p_now,
        expires_at_ms = p_now + w.liveness_ttl_ms,
        due_at_ms = p_now + w.liveness_ttl_ms
    FROM (
        SELECT y.namespace, y.instance
        FROM unnest(p_workers) AS x (worker)
        JOIN ff.worker y ON y.namespace = split_part(x.worker, ' ', 1) AND y.instance = split_part(x.worker, ' ', 2)
        WHERE y.lapsed_at_ms IS NULL AND y.expires_at_ms > p_now AND y.last_heartbeat_at_ms < p_now
        FOR NO KEY UPDATE OF y SKIP LOCKED
    ) l
    WHERE w.namespace = l.namespace AND w.instance = l.instance
$$;
