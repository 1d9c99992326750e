-- Create executions, eligible at once or later; each is atomic by itself. `p_shapes` is JSON of what many have in common
-- (see _core/creating.sql). Answers `stale_catalog` for every one of them, and does nothing, when one goes by defaults
-- of its kind that are not the stored ones. Otherwise `status` is `created`, or `duplicate` with the id that is known,
-- its public state (null: retention has removed it) and creation.
-- Refuses: idempotency_conflict lane_not_accepting route_limit_exceeded
-- Also touches: routes, on first use.
CREATE FUNCTION ff.execution_create(
    p_ids uuid[], p_partitions integer[], p_shapes text[], p_priorities integer[], p_digests text[],
    p_documents bytea[], p_input_types text[], p_inputs bytea[], p_tags text[], p_keys text[], p_delays bigint[],
    p_deadlines bigint[]
) RETURNS TABLE (
    at integer, code text, message text, details jsonb, status text, execution_id text, public_state text,
    created_at_ms bigint
)
LANGUAGE plpgsql SET plan_cache_mode TO force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    now bigint := ff.now_ms();
    how_many integer := cardinality(p_ids);
    has_keys boolean := cardinality(array_remove(p_keys, NULL)) > 0;
    seqs bigint[] := ARRAY(SELECT nextval('ff.execution_seq') FROM generate_series(1, how_many));
    waiting text := ff.public_state(ff.eligible_vector('pending_first_attempt'));
    delayed text := ff.public_state(ff.delayed_vector('waiting_for_delay', 'pending_first_attempt'));
    shapes text[] := '{}';
    routes integer[] := '{}';
    counts integer[] := '{}';
    due_at bigint;
    go integer[]; -- null: all
    keyed integer[] := '{}';
    made integer := 0;
    shape record;
    item record;
    n integer;
BEGIN
    -- What they have in common: mostly there is one shape, its route is known and its lane accepts it.
    FOR shape IN
        SELECT g.shape, g.claimable, r.route_id, coalesce(l.state, 'active') AS lane_state,
            least(g.due_at_ms, now + s.relative_deadline_ms) AS due_at_ms,
            s.defaults IS DISTINCT FROM left(encode(sha256(k.defaults), 'hex'), 16) AS is_stale
        FROM (
            SELECT i.shape, (count(*) FILTER (WHERE i.delay IS NULL OR i.delay <= now))::integer AS claimable,
                least(min(i.delay) FILTER (WHERE i.delay > now), min(i.deadline)) AS due_at_ms
            FROM unnest(p_shapes, p_delays, p_deadlines) AS i(shape, delay, deadline) GROUP BY i.shape
        ) g
        CROSS JOIN LATERAL jsonb_to_record(g.shape::jsonb) AS s(
            namespace text, lane text, kind text, route text, defaults text, relative_deadline_ms bigint)
        LEFT JOIN ff.lane l ON l.lane = s.lane
        CROSS JOIN LATERAL (
            SELECT min(x.id) AS route_id FROM ff.route x
            WHERE x.lane = s.lane AND x.namespace = s.namespace
                AND hashtextextended(x.route, 0) = hashtextextended(s.route, 0) AND x.route = s.route
        ) r
        LEFT JOIN ff.kind_default k ON k.namespace = s.namespace AND k.kind = s.kind
    LOOP
        IF shape.is_stale THEN
            RETURN QUERY SELECT i.at::integer, 'stale_catalog', NULL::text, NULL::jsonb, NULL::text, NULL::text,
                NULL::text, NULL::bigint FROM unnest(p_ids) WITH ORDINALITY AS i(id, at);
            RETURN;
        END IF;
        due_at := least(due_at, shape.due_at_ms);
        IF shape.route_id IS NOT NULL AND shape.lane_state IN (@LANE_ACCEPTS_CREATES@) THEN
            shapes := shapes || shape.shape;
            routes := routes || shape.route_id;
            counts := counts || shape.claimable;
        END IF;
    END LOOP;

    -- All at once what nothing stands against; of those with the same id or key, the first.
    IF has_keys OR (SELECT count(DISTINCT i.id) FROM unnest(p_ids) AS i(id)) < how_many THEN
        go := ff._first_of_each(p_ids, p_shapes, p_keys, shapes);
        IF has_keys THEN
            keyed := ff._take_keys(now, go, p_ids, p_partitions, p_shapes, p_digests, p_keys);
            go := ARRAY(SELECT g.at FROM unnest(go) AS g(at) WHERE p_keys[g.at] IS NULL OR g.at = ANY (keyed));
        END IF;
    END IF;
    IF cardinality(shapes) > 0 AND (go IS NULL OR cardinality(go) > 0) THEN
        made := ff._create_some(now, go, shapes, routes, seqs, p_ids, p_partitions, p_shapes, p_priorities,
            p_digests, p_documents, p_input_types, p_inputs, p_tags, p_delays, p_deadlines);
        FOR n IN 1..cardinality(routes) LOOP
            PERFORM ff._announce_work(routes[n], counts[n]);
        END LOOP;
    END IF;
    PERFORM ff._announce_due(due_at);
    IF made = how_many THEN
        RETURN QUERY SELECT i.at::integer, NULL::text, NULL::text, NULL::jsonb, 'created', NULL::text,
            CASE WHEN i.delay > now THEN delayed ELSE waiting END, now
            FROM unnest(p_ids, p_delays) WITH ORDINALITY AS i(id, delay, at);
        RETURN;
    END IF;
    -- The others one by one, in their order.
    FOR item IN
        SELECT i.at::integer AS at, i.shape, i.key, i.delay, e.seq IS NOT NULL AS is_made
        FROM unnest(seqs, p_shapes, p_keys, p_delays) WITH ORDINALITY AS i(seq, shape, key, delay, at)
        LEFT JOIN ff.execution e ON e.seq = i.seq
        ORDER BY i.at
    LOOP
        at := item.at;
        code := NULL; message := NULL; details := NULL;
        status := 'created'; execution_id := NULL; public_state := NULL; created_at_ms := NULL;
        IF NOT item.is_made THEN
            IF item.at = ANY (keyed) THEN
                -- Its id was known after all.
                DELETE FROM ff.idempotency k
                    WHERE k.namespace = item.shape::jsonb ->> 'namespace' AND k.key = item.key;
            END IF;
            SELECT o.code, o.message, o.details, o.status, o.execution_id, o.public_state, o.created_at_ms
                INTO code, message, details, status, execution_id, public_state, created_at_ms
                FROM ff._create_one(now, at, item.key, seqs, p_ids, p_partitions, p_shapes, p_priorities,
                    p_digests, p_documents, p_input_types, p_inputs, p_tags, p_delays, p_deadlines) o;
        END IF;
        IF status = 'created' THEN
            public_state := CASE WHEN item.delay > now THEN delayed ELSE waiting END;
            created_at_ms := now;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
