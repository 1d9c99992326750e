-- Lease the best eligible executions for several claims, or answer with those that a claim of the same id holds already.
-- Refuses: stale_catalog claim_in_use contended
-- Also touches: `ready` and `agenda`; inputs up to 64 KiB come along.
-- Claims that look at the same routes share one look: what it finds is dealt out in their order, best first. `p_routes`
-- are arrays in text form, `p_known` the latest route that the caller has heard of: when there is a later one, the claim
-- is `stale_catalog`. Nothing here waits: a claim whose id another transaction uses just then is `claim_in_use`; what
-- others have locked is passed over, and a claim that finds nothing else is `contended` and looks again. The work left
-- behind is announced, and that an attempt began. Of what a claim held when it was looked for, only what it holds still
-- when it is read is answered: somebody else may have it by then.

CREATE FUNCTION ff.lease_claim(
    p_namespaces text[],
    p_routes text[],
    p_known integer[],
    p_worker_ids text[],
    p_worker_instances text[],
    p_ttls bigint[],
    p_claim_ids uuid[],
    p_most integer[]
) RETURNS TABLE (
    at integer,
    code text,
    message text,
    details jsonb,
    id uuid,
    partition integer,
    seq bigint,
    created_at_ms bigint,
    priority integer,
    eligible_since_ms bigint,
    lease_id uuid,
    lease_epoch bigint,
    ttl_ms bigint,
    expires_at_ms bigint,
    attempt_id uuid,
    attempt_index integer,
    attempt_type text,
    attempt_epoch bigint,
    timeout_at_ms bigint,
    deadline_at_ms bigint,
    retry_count integer,
    frame_sequence bigint,
    tags text,
    document bytea,
    input_type text,
    input bytea
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
    -- Revisions, not ids: those grow in the order of commits.
    v_newest integer := coalesce((SELECT max(r.revision) FROM ff.route r), 0);
    v_left integer[] := p_most;
    v_is_named boolean := false;
    v_members integer[];
    v_done record;
    v_new_ats integer[] := '{}';
    v_new_ids uuid[] := '{}';
    v_new_places tid[] := '{}';
    v_new_instants bigint[] := '{}';
    v_due_at bigint;
    v_shown_ats integer[] := '{}';
    v_shown_seqs bigint[] := '{}';
BEGIN
    IF (0 < ALL (p_most)) IS NOT TRUE THEN
        v_left := ARRAY(SELECT greatest(c.most, 0) FROM unnest(p_most) WITH ORDINALITY AS c (most, at) ORDER BY c.at);
    END IF;
    FOR i IN 1 .. cardinality(p_most) LOOP
        IF p_known[i] < v_newest THEN
            code := 'stale_catalog';
        ELSIF p_claim_ids[i] IS NULL THEN
            CONTINUE;
        ELSIF pg_try_advisory_xact_lock(hashtext('ff.claim'), uuid_hash(p_claim_ids[i])) THEN
            v_is_named := true;
            CONTINUE;
        ELSE
            code := 'claim_in_use';
        END IF;
        v_left[i] := 0;
        at := i;
        RETURN NEXT;
        code := NULL;
    END LOOP;
    IF v_is_named THEN
        FOR at, seq IN SELECT * FROM ff._claimed(p_claim_ids, p_namespaces, p_worker_instances, v_left, v_now) LOOP
            v_left[at] := 0;
            v_shown_ats := v_shown_ats || at;
            v_shown_seqs := v_shown_seqs || seq;
        END LOOP;
        seq := NULL;
    END IF;
    FOR i IN 1 .. cardinality(p_most) LOOP
        -- The first one of those that look at the same routes looks for all of them.
        CONTINUE WHEN p_routes[i] = '{}' OR array_position(p_routes, p_routes[i]) < i;
        v_members := array_positions(p_routes, p_routes[i]);
        v_done := ff._claim_group(v_now, p_routes[i]::integer[], v_members, p_worker_ids, p_worker_instances, p_ttls,
            p_claim_ids, v_left);
        v_left := v_done.wanted;
        v_due_at := least(v_due_at, v_done.due_at);
        v_new_ats := v_new_ats || v_done.new_ats;
        v_new_ids := v_new_ids || v_done.new_ids;
        v_new_places := v_new_places || v_done.new_places;
        v_new_instants := v_new_instants || v_done.new_instants;
        v_shown_ats := v_shown_ats || v_done.old_ats;
        v_shown_seqs := v_shown_seqs || v_done.old_seqs;
        CONTINUE WHEN NOT v_done.is_rest;
        code := 'contended';
        FOREACH at IN ARRAY v_members LOOP
            IF v_left[at] > 0 AND v_left[at] = p_most[at] THEN
                RETURN NEXT;
            END IF;
        END LOOP;
        code := NULL;
    END LOOP;
    IF cardinality(v_new_ats) > 0 THEN
        RETURN QUERY SELECT * FROM ff._start_attempts(v_new_ats, v_new_places, v_new_instants, p_worker_ids,
            p_worker_instances, p_ttls, p_claim_ids);
        -- Who follows a run waits for the marker of its attempt.
        PERFORM ff._announce_changes(v_new_ids);
        IF ff._is_soon(v_due_at) THEN
            PERFORM ff._announce_due(v_due_at);
        END IF;
    END IF;
    IF cardinality(v_shown_ats) > 0 THEN
        RETURN QUERY
            SELECT
                g.at, NULL::text, NULL::text, NULL::jsonb, e.id, e.partition, e.seq, e.created_at_ms, e.priority,
                e.eligible_since_ms, e.lease_id, e.lease_epoch, e.ttl_ms, e.expires_at_ms, e.attempt_id,
                e.attempt_index, e.attempt_type, e.attempt_epoch, e.timeout_at_ms, e.deadline_at_ms, e.retry_count,
                coalesce(s.last_sequence, 0), e.tags::text, d.document, d.input_type,
                CASE WHEN octet_length(d.input) <= least(65536, @BODY_BATCH_MAX@ / cardinality(v_shown_ats))
                    THEN d.input END
            FROM unnest(v_shown_ats, v_shown_seqs) AS g (at, seq)
            JOIN ff.execution e ON e.seq = g.seq AND e.vector = @LEASED@
                AND (e.claim_id, e.worker_instance)
                    IS NOT DISTINCT FROM (p_claim_ids[g.at], p_worker_instances[g.at])
            LEFT JOIN ff.definition d ON d.seq = g.seq
            LEFT JOIN ff.stream s ON s.seq = e.seq AND s.attempt_index = e.attempt_index;
    END IF;
END
$$;

-- What claims of these ids hold: positions and executions.
CREATE FUNCTION ff._claimed(
    p_claim_ids uuid[], p_namespaces text[], p_worker_instances text[], p_wanted integer[], p_now bigint
) RETURNS TABLE (at integer, seq bigint)
LANGUAGE sql STABLE AS $$
    SELECT c.at::integer, a.seq
    FROM unnest(p_claim_ids, p_namespaces, p_worker_instances, p_wanted) WITH ORDINALITY
        AS c (claim_id, namespace, worker_instance, wanted, at)
    CROSS JOIN LATERAL (
        SELECT a.seq FROM ff.agenda a
        WHERE a.holder = c.namespace || ' ' || c.worker_instance AND a.claim_id = c.claim_id
        LIMIT @CLAIM_TASKS_MAX@
    ) a
    WHERE c.wanted > 0
        AND EXISTS (SELECT FROM ff.execution e WHERE e.seq = a.seq AND e.vector = @LEASED@ AND e.expires_at_ms > p_now)
$$;

-- Pick from these routes for claims that share a look, and deal out what is found; `wanted` is by claim. What is leased
-- for the first time is left to `_start_attempts`, what has a history is leased, or ended, at once. `due_at`: when the
-- first of the new ones times out. `is_rest`: something is left that could be claimed, if others did not hold it.
CREATE FUNCTION ff._claim_group(
    p_now bigint, p_routes integer[], p_members integer[], p_worker_ids text[], p_worker_instances text[],
    p_ttls bigint[], p_claim_ids uuid[],
    INOUT wanted integer[],
    OUT new_ats integer[], OUT new_ids uuid[], OUT new_places tid[], OUT new_instants bigint[], OUT due_at bigint,
    OUT old_ats integer[], OUT old_seqs bigint[],
    OUT is_rest boolean
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    routes integer[];
    picked record;
    gone tid[];
    filled bigint[] := array_fill(0::bigint, ARRAY[cardinality(wanted)]);
    is_measured boolean := false;
    most integer;
    look integer := 0;
    turn integer := 1;
    m integer;
BEGIN
    is_rest := false;
    new_ats := '{}';
    new_ids := '{}';
    new_places := '{}';
    new_instants := '{}';
    old_ats := '{}';
    old_seqs := '{}';
    routes := ARRAY(
        SELECT r.id
        FROM unnest(p_routes) AS x (id)
        JOIN ff.route r ON r.id = x.id
        LEFT JOIN ff.lane l ON l.lane = r.lane
        WHERE coalesce(l.state, 'active') IN (@LANE_ACCEPTS_CLAIMS@)
    );
    IF routes = '{}' THEN
        RETURN;
    END IF;
    LOOP
        most := 0;
        FOREACH m IN ARRAY p_members LOOP
            most := most + wanted[m];
            -- Few inputs fit into a reply, however large they are.
            is_measured := is_measured OR wanted[m] > @BODY_BATCH_MAX@ / @PAYLOAD_BYTES_MAX@;
        END LOOP;
        EXIT WHEN most = 0;
        most := least(most, @CREATE_MANY_MAX@);
        look := greatest(look, 2 * most + 32);
        picked := ff._pick(routes, most, look, p_now, is_measured);
        gone := '{}';
        FOR i IN 1 .. coalesce(cardinality(picked.seqs), 0) LOOP
            IF NOT picked.are_ready[i] THEN
                gone := gone || picked.entries[i];
                CONTINUE;
            END IF;
            WHILE wanted[p_members[turn]] = 0 LOOP
                turn := turn + 1;
            END LOOP;
            EXIT WHEN turn > cardinality(p_members);
            m := p_members[turn];
            IF picked.are_new[i] THEN
                gone := gone || picked.entries[i];
                new_ats := new_ats || m;
                new_ids := new_ids || picked.ids[i];
                new_places := new_places || picked.places[i];
                new_instants := new_instants || picked.instants[i];
                due_at := least(due_at, picked.instants[i] + least(p_ttls[m], picked.timeouts[i]));
            ELSIF ff._take_or_end(picked.seqs[i], picked.instants[i], p_worker_ids[m], p_worker_instances[m], p_ttls[m],
                p_claim_ids[m])
            THEN
                old_ats := old_ats || m;
                old_seqs := old_seqs || picked.seqs[i];
            ELSE
                CONTINUE;
            END IF;
            filled[m] := filled[m] + picked.sizes[i];
            wanted[m] := CASE WHEN filled[m] >= @BODY_BATCH_MAX@ THEN 0 ELSE wanted[m] - 1 END;
        END LOOP;
        IF cardinality(gone) > 0 THEN
            DELETE FROM ff.ready y WHERE y.ctid = ANY (gone);
        END IF;
        IF coalesce(cardinality(picked.seqs), 0) < most THEN
            EXIT WHEN cardinality(routes) = 1 OR ff._is_all(routes, look);
            -- Others hold some of the best: what comes after them was not looked at.
            look := 4 * look;
        END IF;
    END LOOP;
    routes := ARRAY(
        SELECT x.id FROM unnest(routes) AS x (id) WHERE EXISTS (SELECT FROM ff.ready y WHERE y.route_id = x.id)
    );
    is_rest := routes <> '{}';
    IF is_rest AND (new_ats <> '{}' OR old_ats <> '{}') THEN
        PERFORM ff._announce_work(x.id, 1) FROM unnest(routes) AS x (id);
    END IF;
END
$$;
