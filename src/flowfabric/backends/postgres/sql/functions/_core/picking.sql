-- Choosing claimable work and starting first attempts, for `lease_claim`: what is done to many executions at once.

-- Lock the best entries of `ready` over several routes, and their executions, without waiting; what others have locked
-- is passed over. Only so many are locked as are taken: of one route they are read in order, of several the first
-- `p_look` are merged before anything is locked. Best first: entry and row by their places, and what a claim must know.
-- `are_new`: there is nothing to do but to start a first attempt. `sizes` are those of the inputs, 0 unless they count.
CREATE FUNCTION ff._pick(
    p_routes integer[], p_most integer, p_look integer, p_now bigint, p_is_measured boolean,
    OUT entries tid[], OUT places tid[], OUT seqs bigint[], OUT ids uuid[], OUT instants bigint[],
    OUT are_ready boolean[], OUT are_new boolean[], OUT timeouts bigint[], OUT sizes bigint[]
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    SELECT array_agg(h.entry), array_agg(h.place), array_agg(h.seq), array_agg(h.id), array_agg(h.instant),
            array_agg(h.is_ready), array_agg(h.is_new AND (h.deadline_at_ms > h.instant) IS NOT FALSE),
            array_agg(h.attempt_timeout_ms), array_agg(h.size)
        INTO entries, places, seqs, ids, instants, are_ready, are_new, timeouts, sizes
        FROM (
            SELECT
                b.entry, e.place, b.seq, e.id, e.instant, e.is_ready, e.is_new, e.deadline_at_ms, e.attempt_timeout_ms,
                CASE WHEN p_is_measured
                    THEN (SELECT octet_length(d.input) FROM ff.definition d WHERE d.seq = b.seq) ELSE 0 END AS size
            FROM (
                SELECT one.entry, one.seq
                FROM (
                    SELECT y.ctid AS entry, y.seq FROM ff.ready y
                    WHERE cardinality(p_routes) = 1 AND y.route_id = p_routes[1]
                    ORDER BY y.rank, y.eligible_since_ms, y.id
                ) one
                UNION ALL
                SELECT many.entry, many.seq
                FROM (
                    SELECT z.entry, z.seq
                    FROM unnest(CASE WHEN cardinality(p_routes) > 1 THEN p_routes END) AS x (route_id)
                    CROSS JOIN LATERAL (
                        SELECT y.ctid AS entry, y.seq, y.rank, y.eligible_since_ms, y.id FROM ff.ready y
                        WHERE y.route_id = x.route_id
                        ORDER BY y.rank, y.eligible_since_ms, y.id
                        LIMIT p_look
                    ) z
                    ORDER BY z.rank, z.eligible_since_ms, z.id
                    LIMIT p_look
                ) many
            ) b
            CROSS JOIN LATERAL (SELECT FROM ff.ready y WHERE y.ctid = b.entry FOR UPDATE SKIP LOCKED) l
            CROSS JOIN LATERAL (
                SELECT
                    e.ctid AS place, e.id, greatest(p_now, e.last_mutation_at_ms) AS instant, ff._ready(e) AS is_ready,
                    e.attempt_id IS NULL AND e.stream_due_at_ms IS NULL AND e.history_count < @HISTORY_KEPT@ AS is_new,
                    e.deadline_at_ms, e.attempt_timeout_ms
                FROM ff.execution e
                WHERE e.seq = b.seq
                FOR UPDATE SKIP LOCKED
            ) e
            LIMIT p_most
        ) h;
END
$$;

-- Whether these routes have no more entries than were looked at.
CREATE FUNCTION ff._is_all(p_routes integer[], p_look integer) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT count(*) <= p_look
    FROM (
        SELECT FROM unnest(p_routes) AS x (route_id)
        CROSS JOIN LATERAL (SELECT FROM ff.ready y WHERE y.route_id = x.route_id LIMIT p_look + 1) y
        LIMIT p_look + 1
    ) z
$$;

-- Lease one that has a history: its attempt goes on, or a new one supersedes it. One that must not run any more is
-- ended instead: false.
CREATE FUNCTION ff._take_or_end(
    p_seq bigint, p_now bigint, p_worker_id text, p_worker_instance text, p_ttl_ms bigint, p_claim_id uuid
) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    was ff.execution;
    r ff.execution;
BEGIN
    SELECT * INTO was FROM ff.execution e WHERE e.seq = p_seq FOR UPDATE;
    r := ff._end_instead(was, p_now);
    IF r.vector IN (@TERMINAL@) THEN
        PERFORM ff._store(was, r);
        RETURN false;
    END IF;
    r := ff._take(was, p_now, p_worker_id, p_worker_instance, p_ttl_ms, p_claim_id, gen_random_uuid(),
        gen_random_uuid());
    PERFORM ff._store(was, r);
    RETURN true;
END
$$;

-- Start the first attempts of executions that are locked, at `p_places`, and answer with the leases, as `lease_claim`
-- does; `p_ats` says for which claim each is.
CREATE FUNCTION ff._start_attempts(
    p_ats integer[], p_places tid[], p_instants bigint[], p_worker_ids text[], p_worker_instances text[],
    p_ttls bigint[], p_claim_ids uuid[]
) RETURNS TABLE (
    at integer, code text, message text, details jsonb, id uuid, partition integer, seq bigint, created_at_ms bigint,
    priority integer, eligible_since_ms bigint, lease_id uuid, lease_epoch bigint, ttl_ms bigint, expires_at_ms bigint,
    attempt_id uuid, attempt_index integer, attempt_type text, attempt_epoch bigint, timeout_at_ms bigint,
    deadline_at_ms bigint, retry_count integer, frame_sequence bigint, tags text, document bytea, input_type text,
    input bytea
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_started integer;
BEGIN
    RETURN QUERY
        WITH taken AS (
            UPDATE ff.execution e SET
                vector = @LEASED@,
                last_mutation_at_ms = g.instant,
                history_count = e.history_count + 1,
                lease_epoch = e.lease_epoch + 1,
                total_attempt_count = e.total_attempt_count + 1,
                lease_id = gen_random_uuid(),
                claim_id = p_claim_ids[g.at],
                acquired_at_ms = g.instant,
                ttl_ms = p_ttls[g.at],
                expires_at_ms = g.instant + p_ttls[g.at],
                worker_id = p_worker_ids[g.at],
                worker_instance = p_worker_instances[g.at],
                attempt_id = gen_random_uuid(),
                attempt_index = e.total_attempt_count,
                attempt_type = CASE ff.attempt_of(e.vector)
                    WHEN 'pending_first_attempt' THEN 'initial'
                    WHEN 'pending_retry_attempt' THEN 'retry'
                    WHEN 'pending_replay_attempt' THEN 'replay'
                END,
                attempt_state = 'started',
                attempt_started_at_ms = g.instant,
                attempt_epoch = e.lease_epoch + 1,
                timeout_at_ms = g.instant + e.attempt_timeout_ms,
                started_at_ms = coalesce(e.started_at_ms, g.instant)
            FROM unnest(p_ats, p_places, p_instants) AS g (at, place, instant)
            WHERE e.ctid = g.place
            RETURNING g.at, e.id, e.partition, e.seq, e.namespace, e.created_at_ms, e.priority, e.eligible_since_ms,
                e.lease_id, e.lease_epoch, e.ttl_ms, e.expires_at_ms, e.attempt_id, e.attempt_index, e.attempt_type,
                e.timeout_at_ms, e.deadline_at_ms, e.retry_count, e.tags, e.worker_instance, e.claim_id,
                e.history_count, e.acquired_at_ms
        ), timed AS (
            INSERT INTO ff.agenda AS a (seq, due_at_ms, due_kind, holder, claim_id, id)
            SELECT
                t.seq,
                least(t.deadline_at_ms, t.timeout_at_ms, t.expires_at_ms),
                CASE least(t.deadline_at_ms, t.timeout_at_ms, t.expires_at_ms)
                    WHEN t.deadline_at_ms THEN 'execution_deadline'
                    WHEN t.timeout_at_ms THEN 'attempt_timeout'
                    ELSE 'lease_expiry'
                END,
                t.namespace || ' ' || t.worker_instance,
                t.claim_id,
                t.id
            FROM taken t
            ON CONFLICT (seq) DO UPDATE SET due_at_ms = excluded.due_at_ms, due_kind = excluded.due_kind,
                holder = excluded.holder, claim_id = excluded.claim_id, lost_at_ms = NULL
        ), noted AS (
            INSERT INTO ff.event (seq, n, at_ms, name, lease_id, lease_epoch, attempt_id, attempt_index,
                worker_instance)
            SELECT t.seq, t.history_count, t.acquired_at_ms, 'acquired', t.lease_id, t.lease_epoch, t.attempt_id,
                t.attempt_index, t.worker_instance
            FROM taken t
        )
        SELECT
            t.at, NULL::text, NULL::text, NULL::jsonb, t.id, t.partition, t.seq, t.created_at_ms, t.priority,
            t.eligible_since_ms, t.lease_id, t.lease_epoch, t.ttl_ms, t.expires_at_ms, t.attempt_id, t.attempt_index,
            t.attempt_type, t.lease_epoch, t.timeout_at_ms, t.deadline_at_ms, t.retry_count, 0::bigint, t.tags::text,
            d.document, d.input_type,
            CASE WHEN octet_length(d.input) <= least(65536, @BODY_BATCH_MAX@ / cardinality(p_ats)) THEN d.input END
        FROM taken t
        LEFT JOIN ff.definition d ON d.seq = t.seq;
    GET DIAGNOSTICS v_started = ROW_COUNT;
    IF v_started <> cardinality(p_ats) THEN
        RAISE EXCEPTION 'of % executions % could be leased', cardinality(p_ats), v_started;
    END IF;
END
$$;
