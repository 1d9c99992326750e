-- Telling sleepers what a transaction changed. A notification makes commits wait for each other, so that one is sent
-- only where somebody sleeps: a process holds a shared session lock on (kind, bucket) for what it sleeps for.
--
-- What must stay true: no sleeper misses a commit. A writer first takes the shared lock on (kind.writing, bucket) until
-- its transaction ends, then tries the sleepers' lock; a sleeper takes its own lock first, then waits for the writers'
-- one, and looks only after that. Either the writer sees the sleeper, or the sleeper waits for the writer and sees what
-- it wrote. A writer never waits, and writers are never in each other's way. Buckets may be shared by strangers, which
-- only wakes too often.
--
-- Channel: the name of the schema. Payloads: `w <route id> <count>`, `x <execution uuid>`, `d <instant>`, `c`.

-- 256 buckets per kind bound how many locks a process holds. Stable, as `convert_to` is: otherwise it is not inlined.
CREATE FUNCTION ff._work_bucket(p_namespace text, p_lane text) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT get_byte(sha256(convert_to(p_namespace || ' ' || p_lane, 'UTF8')), 0)
$$;

CREATE FUNCTION ff._change_bucket(p_id uuid) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT get_byte(uuid_send(p_id), 15)
$$;

-- Says whether somebody sleeps for this kind and bucket, or is about to. A transaction that others decide the length
-- of (`flowfabric.announce` is `always`) takes no lock that sleepers would wait for.
CREATE FUNCTION ff._is_heard(p_kind text, p_bucket integer) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT CASE
        WHEN current_setting('flowfabric.announce', true) = 'always' THEN true
        WHEN NOT pg_try_advisory_xact_lock_shared(hashtext('ff.' || p_kind || '.writing'), p_bucket) THEN true
        WHEN pg_try_advisory_lock(hashtext('ff.' || p_kind), p_bucket)
            THEN NOT pg_advisory_unlock(hashtext('ff.' || p_kind), p_bucket)
        ELSE true
    END
$$;

CREATE FUNCTION ff._notify(p_payload text) RETURNS void
LANGUAGE sql VOLATILE AS $$
    SELECT pg_notify(rtrim('ff.', '.'), p_payload)
$$;

-- So many executions of a route became claimable, or were left behind by a claim.
CREATE FUNCTION ff._announce_work(p_route_id integer, p_how_many integer) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_bucket integer;
BEGIN
    IF p_how_many > 0 THEN
        SELECT ff._work_bucket(namespace, lane) INTO v_bucket FROM ff.route WHERE id = p_route_id;
        IF v_bucket IS NULL OR ff._is_heard('work', v_bucket) THEN
            PERFORM ff._notify('w ' || p_route_id || ' ' || p_how_many);
        END IF;
    END IF;
END
$$;

-- An execution, or what its stream holds, changed.
CREATE FUNCTION ff._announce_change(p_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF ff._is_heard('change', ff._change_bucket(p_id)) THEN
        PERFORM ff._notify('x ' || p_id);
    END IF;
END
$$;

-- Several executions changed.
CREATE FUNCTION ff._announce_changes(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM ff._notify('x ' || u.id) FROM unnest(p_ids) AS u (id) WHERE ff._is_heard('change', ff._change_bucket(u.id));
END
$$;

-- Whether something due at this instant (null: nothing) is to be announced. Processes with timers look at the earliest one
-- every 5 s, so that only what is due sooner is, with room for the time until the commit.
CREATE FUNCTION ff._is_soon(p_at_ms bigint) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT p_at_ms <= ff.now_ms() + 7000
$$;

-- Something is due at this instant (null: nothing).
CREATE FUNCTION ff._announce_due(p_at_ms bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF ff._is_soon(p_at_ms) AND ff._is_heard('due', 0) THEN
        PERFORM ff._notify('d ' || p_at_ms);
    END IF;
END
$$;

-- Lanes, routes or defaults of kinds changed: rare, and everybody who listens wants to know.
CREATE FUNCTION ff._announce_catalog() RETURNS void
LANGUAGE sql VOLATILE AS $$
    SELECT ff._notify('c')
$$;
