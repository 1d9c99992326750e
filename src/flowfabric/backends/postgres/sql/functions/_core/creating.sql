-- Creating: routes, and the rows of new executions. A shape is what many creates have in common, as JSON: where they
-- belong, what functions need of their policies, and the stamp of the kind's defaults that the caller went by.

-- Give a new route its revision. This runs when the transaction that made it commits, so that revisions grow in the order
-- of commits, however long a transaction was; from here to the end of the commit others wait for their turn.
CREATE FUNCTION ff._settle_route() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ff.route_revision'), 0);
    UPDATE ff.route SET revision = nextval('ff.route_revision') WHERE id = NEW.id;
    RETURN NULL;
END
$$;

-- Let whoever makes the same route just now be first, unless that takes long: it may be part of an application's own
-- transaction. Making it twice does no harm.
CREATE FUNCTION ff._let_pass(p_namespace text, p_lane text, p_route text) RETURNS void
LANGUAGE plpgsql SET lock_timeout TO '200ms' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ff.route'), hashtext(p_namespace || ' ' || p_lane || ' ' || p_route));
EXCEPTION WHEN lock_not_available THEN
    NULL;
END
$$;

-- Return the id of a route, made known on first use; null when the lane has no room for another.
CREATE FUNCTION ff._route(
    p_namespace text, p_lane text, p_route text, p_kind text, p_required text[], p_now bigint
) RETURNS integer
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found_id integer;
BEGIN
    FOR turn IN 1..2 LOOP
        SELECT min(r.id) INTO found_id FROM ff.route r
            WHERE r.lane = p_lane AND r.namespace = p_namespace
                AND hashtextextended(r.route, 0) = hashtextextended(p_route, 0) AND r.route = p_route;
        IF found_id IS NOT NULL THEN
            RETURN found_id;
        END IF;
        IF turn = 1 THEN
            PERFORM ff._let_pass(p_namespace, p_lane, p_route);
        END IF;
    END LOOP;
    -- Several namespaces may use one combination of kind and capabilities; it counts once.
    IF NOT EXISTS (SELECT 1 FROM ff.route r WHERE r.lane = p_lane AND r.route = p_route)
        AND (SELECT count(DISTINCT r.route) FROM ff.route r WHERE r.lane = p_lane) >= @ROUTES_PER_LANE_MAX@
    THEN
        RETURN NULL;
    END IF;
    INSERT INTO ff.route (namespace, lane, route, kind, required, created_at_ms)
        VALUES (p_namespace, p_lane, p_route, p_kind, p_required, p_now)
        RETURNING id INTO found_id;
    PERFORM ff._announce_catalog();
    RETURN found_id;
END
$$;

-- Answer a create whose id or live key is known: status and where it stands, or a refusal; nulls when it is new.
CREATE FUNCTION ff._known(
    p_id uuid, p_partition integer, p_digest text, p_namespace text, p_key text, p_now bigint,
    OUT code text, OUT message text, OUT details jsonb, OUT execution_id text, OUT public_state text,
    OUT created_at_ms bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known record;
    was_there boolean;
BEGIN
    SELECT e.id, e.partition, d.digest, e.vector, e.created_at_ms INTO known
        FROM ff.execution e JOIN ff.definition d ON d.seq = e.seq WHERE e.id = p_id;
    was_there := FOUND;
    IF was_there AND known.partition <> p_partition THEN
        code := 'idempotency_conflict';
        message := 'this uuid is in use under another partition';
        details := '{}';
        RETURN;
    END IF;
    IF NOT was_there AND p_key IS NOT NULL THEN
        SELECT k.id, k.partition, k.digest, e.vector, e.created_at_ms INTO known
            FROM ff.idempotency k LEFT JOIN ff.execution e ON e.id = k.id
            WHERE k.namespace = p_namespace AND k.key = p_key AND k.expires_at_ms > p_now;
        was_there := FOUND;
    END IF;
    IF NOT was_there THEN
        RETURN;
    END IF;
    execution_id := ff._execution_id(known.partition, known.id);
    IF known.digest <> p_digest THEN
        code := 'idempotency_conflict';
        details := jsonb_build_object('execution_id', execution_id);
        RETURN;
    END IF;
    public_state := ff.public_state(known.vector);
    created_at_ms := known.created_at_ms;
END
$$;

-- Insert executions at positions `p_go` (null: all) whose shape is in `p_known_shapes`, beside their entries in `ready`
-- and `agenda`; those whose id is taken are left out. Returns how many there are.
CREATE FUNCTION ff._create_some(
    p_now bigint, p_go integer[], p_known_shapes text[], p_route_ids integer[], p_seqs bigint[], p_ids uuid[],
    p_partitions integer[], p_shapes text[], p_priorities integer[], p_digests text[], p_documents bytea[],
    p_input_types text[], p_inputs bytea[], p_tags text[], p_delays bigint[], p_deadlines bigint[]
) RETURNS integer
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    tried integer;
    made integer;
BEGIN
    WITH shape AS MATERIALIZED (
        SELECT g.shape, g.route_id, s.*
        FROM unnest(p_known_shapes, p_route_ids) AS g(shape, route_id)
        CROSS JOIN LATERAL jsonb_to_record(g.shape::jsonb) AS s(
            namespace text, lane text, kind text, route text,
            max_retries integer, backoff_kind text, backoff_delay_ms bigint, backoff_max_ms bigint,
            backoff_multiplier double precision, backoff_jitter boolean, retryable_categories text[],
            attempt_timeout_ms bigint, relative_deadline_ms bigint, max_reclaim_count integer,
            reclaim_grace_ms bigint, max_replay_count integer, retention_ms bigint, frames_ttl_ms bigint,
            frames_maxlen integer)
    ), item AS MATERIALIZED (
        SELECT i.*, CASE WHEN i.delay_until_ms > p_now THEN i.delay_until_ms END AS not_before_ms
        FROM unnest(p_seqs, p_ids, p_partitions, p_shapes, p_priorities, p_tags, p_delays, p_deadlines)
            WITH ORDINALITY AS i(seq, id, partition, shape, priority, tags, delay_until_ms, absolute_ms, at)
        WHERE p_go IS NULL OR i.at = ANY (p_go)
    ), made AS (
        INSERT INTO ff.execution (
            seq, id, created_at_ms, partition, route_id, namespace, lane, kind, route,
            max_retries, backoff_kind, backoff_delay_ms, backoff_max_ms, backoff_multiplier, backoff_jitter,
            retryable_categories, attempt_timeout_ms, relative_deadline_ms, absolute_deadline_ms,
            max_reclaim_count, reclaim_grace_ms, max_replay_count, retention_ms, frames_ttl_ms, frames_maxlen,
            vector, priority, eligible_since_ms, run_started_at_ms, last_mutation_at_ms,
            not_before_ms, deadline_at_ms, tags)
        SELECT
            i.seq, i.id, p_now, i.partition, s.route_id, s.namespace, s.lane, s.kind, s.route,
            s.max_retries, s.backoff_kind, s.backoff_delay_ms, s.backoff_max_ms, s.backoff_multiplier,
            s.backoff_jitter, s.retryable_categories, s.attempt_timeout_ms, s.relative_deadline_ms, i.absolute_ms,
            s.max_reclaim_count, s.reclaim_grace_ms, s.max_replay_count, s.retention_ms, s.frames_ttl_ms,
            s.frames_maxlen,
            CASE WHEN i.not_before_ms IS NULL THEN ff.eligible_vector('pending_first_attempt')
                ELSE ff.delayed_vector('waiting_for_delay', 'pending_first_attempt') END,
            i.priority, coalesce(i.not_before_ms, p_now), p_now, p_now,
            i.not_before_ms, least(i.absolute_ms, p_now + s.relative_deadline_ms), i.tags::jsonb
        FROM item i JOIN shape s ON s.shape = i.shape
        -- Two batches with the same ids take them in the same order.
        ORDER BY i.id, i.at
        ON CONFLICT (id) DO NOTHING
        RETURNING seq, id, route_id, priority, eligible_since_ms, not_before_ms, deadline_at_ms
    ), claimable AS (
        INSERT INTO ff.ready (route_id, rank, eligible_since_ms, id, seq)
        SELECT m.route_id, -m.priority, m.eligible_since_ms, m.id, m.seq FROM made m WHERE m.not_before_ms IS NULL
    ), timed AS (
        INSERT INTO ff.agenda (seq, due_at_ms, due_kind, id)
        SELECT m.seq, least(m.deadline_at_ms, m.not_before_ms),
            CASE least(m.deadline_at_ms, m.not_before_ms) WHEN m.deadline_at_ms THEN 'execution_deadline'
                ELSE 'delayed' END,
            m.id
        FROM made m WHERE m.not_before_ms IS NOT NULL OR m.deadline_at_ms IS NOT NULL
    )
    SELECT (SELECT count(*) FROM item), (SELECT count(*) FROM made) INTO tried, made;
    INSERT INTO ff.definition (seq, digest, document, input_type, input)
        SELECT i.seq, i.digest, i.document, i.input_type, i.input
        FROM unnest(p_seqs, p_digests, p_documents, p_input_types, p_inputs)
            WITH ORDINALITY AS i(seq, digest, document, input_type, input, at)
        WHERE (p_go IS NULL OR i.at = ANY (p_go))
            AND (made = tried OR EXISTS (SELECT 1 FROM ff.execution e WHERE e.seq = i.seq));
    RETURN made;
END
$$;

-- Create one execution that something may stand against: it is known, its route is new, or somebody creates it just now.
-- `p_position` is where it is in the arrays. Nobody has checked the lane.
CREATE FUNCTION ff._create_one(
    p_now bigint, p_position integer, p_key text, p_seqs bigint[], p_ids uuid[], p_partitions integer[],
    p_shapes text[], p_priorities integer[], p_digests text[], p_documents bytea[], p_input_types text[],
    p_inputs bytea[], p_tags text[], p_delays bigint[], p_deadlines bigint[],
    OUT code text, OUT message text, OUT details jsonb, OUT status text, OUT execution_id text, OUT public_state text,
    OUT created_at_ms bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    own_id uuid := p_ids[p_position];
    own_shape text := p_shapes[p_position];
    shape record;
    known record;
    lane_state text;
    found_route integer;
BEGIN
    SELECT * INTO shape FROM jsonb_to_record(own_shape::jsonb) AS s(
        namespace text, lane text, kind text, route text, required text[], window_ms bigint);
    FOR attempt IN 1..100 LOOP
        known := ff._known(own_id, p_partitions[p_position], p_digests[p_position], shape.namespace, p_key, p_now);
        IF known.code IS NOT NULL OR known.execution_id IS NOT NULL THEN
            code := known.code;
            message := known.message;
            details := known.details;
            status := CASE WHEN known.code IS NULL THEN 'duplicate' END;
            execution_id := known.execution_id;
            public_state := known.public_state;
            created_at_ms := known.created_at_ms;
            RETURN;
        END IF;
        SELECT l.state INTO lane_state FROM ff.lane l WHERE l.lane = shape.lane;
        IF lane_state NOT IN (@LANE_ACCEPTS_CREATES@) THEN
            code := 'lane_not_accepting';
            message := 'lane ' || shape.lane || ' is ' || lane_state || ' and takes no new work';
            details := jsonb_build_object('lane', shape.lane, 'state', lane_state);
            RETURN;
        END IF;
        found_route := ff._route(shape.namespace, shape.lane, shape.route, shape.kind, shape.required, p_now);
        IF found_route IS NULL THEN
            code := 'route_limit_exceeded';
            details := jsonb_build_object('lane', shape.lane);
            RETURN;
        END IF;
        IF p_key IS NOT NULL THEN
            INSERT INTO ff.idempotency AS k (namespace, key, partition, id, digest, expires_at_ms)
                VALUES (shape.namespace, p_key, p_partitions[p_position], own_id, p_digests[p_position],
                    p_now + shape.window_ms)
                ON CONFLICT (namespace, key) DO UPDATE SET partition = excluded.partition, id = excluded.id,
                    digest = excluded.digest, expires_at_ms = excluded.expires_at_ms
                WHERE k.expires_at_ms <= p_now;
            -- Otherwise somebody else has created it meanwhile.
            CONTINUE WHEN NOT FOUND;
        END IF;
        IF ff._create_some(p_now, ARRAY[p_position], ARRAY[own_shape], ARRAY[found_route], p_seqs, p_ids,
            p_partitions, p_shapes, p_priorities, p_digests, p_documents, p_input_types, p_inputs, p_tags,
            p_delays, p_deadlines) = 1
        THEN
            PERFORM ff._announce_work(found_route,
                CASE WHEN p_delays[p_position] > p_now THEN 0 ELSE 1 END);
            status := 'created';
            RETURN;
        END IF;
        DELETE FROM ff.idempotency k WHERE k.namespace = shape.namespace AND k.key = p_key;
    END LOOP;
    RAISE serialization_failure USING MESSAGE = 'an execution appears and disappears';
END
$$;

-- Return the positions of creates that may go together: their shape is one of `p_known_shapes`, and none before them has
-- the same id or key.
CREATE FUNCTION ff._first_of_each(p_ids uuid[], p_shapes text[], p_keys text[], p_known_shapes text[])
RETURNS integer[]
LANGUAGE sql AS $$
    SELECT coalesce(array_agg(f.at ORDER BY f.at), '{}') FROM (
        SELECT i.at::integer AS at, i.shape, i.key,
            row_number() OVER (PARTITION BY i.id ORDER BY i.at) AS nth_of_id,
            row_number() OVER (PARTITION BY i.key, i.shape::jsonb ->> 'namespace' ORDER BY i.at) AS nth_of_key
        FROM unnest(p_ids, p_shapes, p_keys) WITH ORDINALITY AS i(id, shape, key, at)
    ) f WHERE f.nth_of_id = 1 AND (f.key IS NULL OR f.nth_of_key = 1) AND f.shape = ANY (p_known_shapes)
$$;

-- Take the idempotency keys of the creates at positions `p_go`; returns the positions of those that were free.
CREATE FUNCTION ff._take_keys(
    p_now bigint, p_go integer[], p_ids uuid[], p_partitions integer[], p_shapes text[], p_digests text[],
    p_keys text[]
) RETURNS integer[]
LANGUAGE sql AS $$
    WITH item AS MATERIALIZED (
        SELECT i.at::integer AS at, i.id, i.partition, i.digest, i.key, i.shape::jsonb ->> 'namespace' AS namespace,
            p_now + (i.shape::jsonb ->> 'window_ms')::bigint AS expires_at_ms
        FROM unnest(p_ids, p_partitions, p_shapes, p_digests, p_keys)
            WITH ORDINALITY AS i(id, partition, shape, digest, key, at)
        WHERE i.key IS NOT NULL AND i.at = ANY (p_go)
    ), taken AS (
        INSERT INTO ff.idempotency AS k (namespace, key, partition, id, digest, expires_at_ms)
        SELECT i.namespace, i.key, i.partition, i.id, i.digest, i.expires_at_ms FROM item i
        -- Two batches with the same keys take them in the same order.
        ORDER BY i.namespace, i.key COLLATE "C"
        ON CONFLICT (namespace, key) DO UPDATE SET partition = excluded.partition, id = excluded.id,
            digest = excluded.digest, expires_at_ms = excluded.expires_at_ms
        WHERE k.expires_at_ms <= p_now
        RETURNING k.id
    )
    SELECT coalesce(array_agg(i.at), '{}') FROM item i WHERE i.id IN (SELECT t.id FROM taken t)
$$;
