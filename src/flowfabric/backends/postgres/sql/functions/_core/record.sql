-- Loading and storing one execution, and the index entries that follow from its row. The row's lock comes first, always:
-- whatever belongs to an execution is written only by who holds it.

-- Load and lock an execution; a row of nulls when there is none. A different partition is a different id.
CREATE FUNCTION ff._open(p_partition integer, p_id uuid) RETURNS ff.execution
LANGUAGE plpgsql AS $$
DECLARE
    r ff.execution;
BEGIN
    SELECT * INTO r FROM ff.execution e WHERE e.id = p_id AND e.partition = p_partition FOR UPDATE;
    RETURN r;
END
$$;

-- Lock an execution out of turn: a statement over `p_ids` came before, which keeps the lock of each one that it had to
-- wait for, also of those it left alone then. Whoever has this one may be waiting for one of those, so that nobody waits
-- here, unless no id is larger: the caller's call fails as after a deadlock, and is sent again.
CREATE FUNCTION ff._lock_late(p_id uuid, p_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_id >= ALL (p_ids) THEN
        RETURN;
    END IF;
    PERFORM FROM ff.execution e WHERE e.id = p_id FOR UPDATE SKIP LOCKED;
    IF NOT FOUND AND EXISTS (SELECT FROM ff.execution e WHERE e.id = p_id) THEN
        RAISE serialization_failure USING MESSAGE = 'an execution is locked that is needed out of turn';
    END IF;
END
$$;

-- The id as everybody outside writes it.
CREATE FUNCTION ff._execution_id(p_partition integer, p_id uuid) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT '{fp:' || p_partition || '}:' || p_id
$$;

-- The details of `execution_not_found`.
CREATE FUNCTION ff._absent(p_partition integer, p_id uuid) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('execution_id', ff._execution_id(p_partition, p_id))
$$;

-- Whether it can be claimed right now: it has an entry in `ready`.
CREATE FUNCTION ff._ready(r ff.execution) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT (r).grant_expires_at_ms IS NULL
        AND ((r).vector IN (@ELIGIBLE@) OR ((r).vector IN (@ACTIVE@) AND (r).reclaim_ready))
$$;

-- Its earliest timer, or nulls.
CREATE FUNCTION ff._timer(r ff.execution, OUT kind text, OUT at_ms bigint)
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF r.vector IN (@TERMINAL@) THEN
        at_ms := least(r.frames_trim_at_ms, r.retention_due_at_ms, r.stream_due_at_ms);
        kind := CASE WHEN at_ms IS NOT NULL THEN 'retention' END;
    ELSIF r.vector = @LEASED@ THEN
        at_ms := least(r.deadline_at_ms, r.timeout_at_ms, r.expires_at_ms, r.reclaim_at_ms, r.not_before_ms,
            r.grant_expires_at_ms, r.stream_due_at_ms);
        kind := CASE at_ms
            WHEN r.deadline_at_ms THEN 'execution_deadline'
            WHEN r.timeout_at_ms THEN 'attempt_timeout'
            WHEN r.expires_at_ms THEN 'lease_expiry'
            WHEN r.reclaim_at_ms THEN 'lease_expiry'
            WHEN r.not_before_ms THEN 'delayed'
            WHEN r.grant_expires_at_ms THEN 'grant_expiry'
            WHEN r.stream_due_at_ms THEN 'retention'
        END;
    ELSE
        at_ms := least(r.deadline_at_ms, r.reclaim_at_ms, r.not_before_ms, r.grant_expires_at_ms, r.stream_due_at_ms);
        kind := CASE at_ms
            WHEN r.deadline_at_ms THEN 'execution_deadline'
            WHEN r.reclaim_at_ms THEN 'lease_expiry'
            WHEN r.not_before_ms THEN 'delayed'
            WHEN r.grant_expires_at_ms THEN 'grant_expiry'
            WHEN r.stream_due_at_ms THEN 'retention'
        END;
    END IF;
END
$$;

-- Who holds its lease, or null.
CREATE FUNCTION ff._holder(r ff.execution) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (r).vector = @LEASED@ THEN (r).namespace || ' ' || (r).worker_instance END
$$;

-- Since when its lease is lost, while nobody has taken over.
CREATE FUNCTION ff._lost(r ff.execution) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (r).vector IN (@LEASE_EXPIRED@, @LEASE_REVOKED@) AND (r).lease_id IS NOT NULL
        THEN (r).lost_at_ms END
$$;

-- Make `ready` and `agenda` agree with a row that changed from `was` to `r`, and announce what others wait for.
CREATE FUNCTION ff._index(was ff.execution, r ff.execution) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    was_ready boolean := ff._ready(was);
    is_ready boolean := ff._ready(r);
    was_timer record := ff._timer(was);
    timer record := ff._timer(r);
    holder_now text := ff._holder(r);
    claim_now uuid := CASE WHEN r.vector = @LEASED@ THEN r.claim_id END;
    lost_now bigint := ff._lost(r);
BEGIN
    IF was_ready AND (NOT is_ready OR was.priority <> r.priority OR was.eligible_since_ms <> r.eligible_since_ms) THEN
        DELETE FROM ff.ready y WHERE y.route_id = was.route_id AND y.rank = -was.priority
            AND y.eligible_since_ms = was.eligible_since_ms AND y.id = was.id;
        was_ready := false;
    END IF;
    IF is_ready AND NOT coalesce(was_ready, false) THEN
        INSERT INTO ff.ready (route_id, rank, eligible_since_ms, id, seq)
            VALUES (r.route_id, -r.priority, r.eligible_since_ms, r.id, r.seq)
            ON CONFLICT DO NOTHING;
        PERFORM ff._announce_work(r.route_id, 1);
    END IF;
    IF was_timer.at_ms IS DISTINCT FROM timer.at_ms OR was_timer.kind IS DISTINCT FROM timer.kind
        OR ff._holder(was) IS DISTINCT FROM holder_now OR ff._lost(was) IS DISTINCT FROM lost_now
        OR (CASE WHEN was.vector = @LEASED@ THEN was.claim_id END) IS DISTINCT FROM claim_now
    THEN
        IF timer.at_ms IS NULL AND holder_now IS NULL AND lost_now IS NULL THEN
            DELETE FROM ff.agenda a WHERE a.seq = r.seq;
        ELSE
            INSERT INTO ff.agenda AS a (seq, due_at_ms, due_kind, holder, claim_id, lost_at_ms, id)
                VALUES (r.seq, timer.at_ms, timer.kind, holder_now, claim_now, lost_now, r.id)
                ON CONFLICT (seq) DO UPDATE SET due_at_ms = excluded.due_at_ms, due_kind = excluded.due_kind,
                    holder = excluded.holder, claim_id = excluded.claim_id, lost_at_ms = excluded.lost_at_ms;
            IF timer.at_ms IS NOT NULL AND was_timer.at_ms IS DISTINCT FROM timer.at_ms THEN
                PERFORM ff._announce_due(timer.at_ms);
            END IF;
        END IF;
    END IF;
    IF was.vector IS DISTINCT FROM r.vector OR was.attempt_id IS DISTINCT FROM r.attempt_id THEN
        PERFORM ff._announce_change(r.id);
    END IF;
END
$$;

-- Store what changed, and make the index entries agree. Without a difference nothing is written.
CREATE FUNCTION ff._store(was ff.execution, r ff.execution) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF was IS NOT DISTINCT FROM r THEN
        RETURN;
    END IF;
    UPDATE ff.execution e SET
        vector = r.vector, priority = r.priority, eligible_since_ms = r.eligible_since_ms,
        run_started_at_ms = r.run_started_at_ms, last_mutation_at_ms = r.last_mutation_at_ms,
        history_count = r.history_count, lease_epoch = r.lease_epoch,
        total_attempt_count = r.total_attempt_count, retry_count = r.retry_count,
        reclaim_count = r.reclaim_count, replay_count = r.replay_count,
        lease_id = r.lease_id, claim_id = r.claim_id, acquired_at_ms = r.acquired_at_ms,
        renewed_at_ms = r.renewed_at_ms, ttl_ms = r.ttl_ms, expires_at_ms = r.expires_at_ms,
        worker_id = r.worker_id, worker_instance = r.worker_instance,
        attempt_id = r.attempt_id, attempt_index = r.attempt_index, attempt_type = r.attempt_type,
        attempt_state = r.attempt_state, attempt_started_at_ms = r.attempt_started_at_ms,
        attempt_epoch = r.attempt_epoch, attempt_ended_at_ms = r.attempt_ended_at_ms,
        timeout_at_ms = r.timeout_at_ms, previous_attempt_index = r.previous_attempt_index,
        attempt_failure = r.attempt_failure, stream_closed_at_ms = r.stream_closed_at_ms,
        stream_closed_reason = r.stream_closed_reason, started_at_ms = r.started_at_ms,
        completed_at_ms = r.completed_at_ms, has_result = r.has_result,
        retention_due_at_ms = r.retention_due_at_ms, frames_trim_at_ms = r.frames_trim_at_ms,
        stream_due_at_ms = r.stream_due_at_ms, not_before_ms = r.not_before_ms,
        deadline_at_ms = r.deadline_at_ms, lost_at_ms = r.lost_at_ms, lost_reason = r.lost_reason,
        reclaim_at_ms = r.reclaim_at_ms, reclaim_ready = r.reclaim_ready, reclaim_exempt = r.reclaim_exempt,
        failure = r.failure, blocking_detail = r.blocking_detail,
        cancel_reason = r.cancel_reason, cancelled_by = r.cancelled_by,
        progress_percent = r.progress_percent, progress_message = r.progress_message,
        progress_at_ms = r.progress_at_ms,
        grant_purpose = r.grant_purpose, grant_worker_id = r.grant_worker_id,
        grant_worker_instance = r.grant_worker_instance, granted_at_ms = r.granted_at_ms,
        grant_expires_at_ms = r.grant_expires_at_ms,
        tags = r.tags, replays = r.replays, answers = r.answers
        WHERE e.seq = r.seq;
    PERFORM ff._index(was, r);
END
$$;
