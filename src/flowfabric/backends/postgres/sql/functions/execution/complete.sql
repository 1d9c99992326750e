-- End active executions with success: one command per position, each on another execution. Answers the instant.
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Also touches: ff.result. What everybody does - the holder of a live lease completes - is one statement for all; the rest
-- goes step by step. Both lock in the order of ids; the second one does not wait out of turn.
CREATE FUNCTION ff.execution_complete(
    p_partitions integer[], p_ids uuid[], p_lease_ids uuid[], p_epochs bigint[], p_attempt_ids uuid[], p_lanes text[],
    p_routes text[], p_digests text[], p_actors text[], p_types text[], p_results bytea[]
)
RETURNS TABLE (at integer, code text, message text, details jsonb, completed_at_ms bigint)
LANGUAGE plpgsql
SET plan_cache_mode TO force_generic_plan
SET enable_hashjoin TO off
SET enable_mergejoin TO off
AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := ff.now_ms();
    v_done integer[];
    v_instants bigint[];
    v_ids uuid[];
    v_overlong bigint[];
    v_next_due bigint;
    v_timed integer;
    i integer;
BEGIN
    WITH ended AS (
        UPDATE ff.execution e SET
            vector = ff.ended_vector('success', 'attempt_terminal'),
            last_mutation_at_ms = greatest(v_now, e.last_mutation_at_ms),
            completed_at_ms = greatest(v_now, e.last_mutation_at_ms),
            retention_due_at_ms = greatest(v_now, e.last_mutation_at_ms)
                + coalesce(e.retention_ms, @RETENTION_DEFAULT_MS@),
            frames_trim_at_ms = CASE WHEN e.frames_ttl_ms < coalesce(e.retention_ms, @RETENTION_DEFAULT_MS@)
                THEN greatest(v_now, e.last_mutation_at_ms) + e.frames_ttl_ms END,
            history_count = e.history_count + 1,
            attempt_state = 'ended_success',
            attempt_ended_at_ms = greatest(v_now, e.last_mutation_at_ms),
            timeout_at_ms = NULL,
            stream_closed_at_ms = coalesce(e.stream_closed_at_ms, greatest(v_now, e.last_mutation_at_ms)),
            stream_closed_reason = coalesce(e.stream_closed_reason, 'attempt_success'),
            has_result = g.type IS NOT NULL,
            failure = NULL, blocking_detail = NULL, not_before_ms = NULL,
            lease_id = NULL, claim_id = NULL, acquired_at_ms = NULL, renewed_at_ms = NULL, ttl_ms = NULL,
            expires_at_ms = NULL,
            answers = e.answers[greatest(1, cardinality(e.answers) - 34):] || ARRAY[
                'execution.complete', g.lease_id::text, g.epoch::text, g.digest,
                '[' || greatest(v_now, e.last_mutation_at_ms) || ']']
        FROM (
            SELECT * FROM unnest(p_partitions, p_ids, p_lease_ids, p_epochs, p_attempt_ids, p_lanes, p_routes,
                    p_digests, p_actors, p_types) WITH ORDINALITY
                AS c (partition, id, lease_id, epoch, attempt_id, lane, route, digest, actor, type, at)
                ORDER BY c.id
        ) g
        WHERE e.id = g.id AND e.partition = g.partition AND e.vector = @LEASED@ AND e.lease_id = g.lease_id
            AND e.lease_epoch = g.epoch AND e.attempt_id = g.attempt_id
            AND e.lane = coalesce(g.lane, e.lane) AND e.route = coalesce(g.route, e.route)
            AND e.expires_at_ms > greatest(v_now, e.last_mutation_at_ms)
        RETURNING g.at::integer, g.lease_id, g.actor, e.seq, e.id, e.history_count, e.lease_epoch, e.attempt_id,
            e.attempt_index, e.worker_instance, e.completed_at_ms,
            least(e.frames_trim_at_ms, e.retention_due_at_ms, e.stream_due_at_ms) AS due_at_ms
    ), told AS (
        INSERT INTO ff.event (seq, n, at_ms, name, reason, lease_id, lease_epoch, attempt_id, attempt_index,
                worker_instance, outcome, actor)
            SELECT t.seq, t.history_count, t.completed_at_ms, 'released', 'completed', t.lease_id, t.lease_epoch,
                t.attempt_id, t.attempt_index, t.worker_instance, 'success', nullif(t.actor, '')
                FROM ended t
    ), kept AS (
        INSERT INTO ff.result (seq, content_type, data)
            SELECT t.seq, p_types[t.at], p_results[t.at] FROM ended t WHERE p_types[t.at] IS NOT NULL
    ), due AS (
        UPDATE ff.agenda a SET due_at_ms = t.due_at_ms, due_kind = 'retention', holder = NULL, claim_id = NULL,
                lost_at_ms = NULL
            FROM ended t WHERE a.seq = t.seq
            RETURNING a.seq
    )
    SELECT coalesce(array_agg(t.at), '{}'), array_agg(t.completed_at_ms), array_agg(t.id), min(t.due_at_ms),
            array_agg(t.seq) FILTER (WHERE t.history_count > @HISTORY_KEPT@), (SELECT count(*) FROM due)
        INTO v_done, v_instants, v_ids, v_next_due, v_overlong, v_timed
        FROM ended t;
    IF cardinality(v_done) > 0 THEN
        RETURN QUERY SELECT u.at, NULL::text, NULL::text, NULL::jsonb, u.instant
            FROM unnest(v_done, v_instants) AS u (at, instant);
        PERFORM ff._announce_changes(v_ids);
    END IF;
    IF v_timed < cardinality(v_done) THEN
        -- Who is leased has an entry, unless something has damaged the store: then it gets one now.
        INSERT INTO ff.agenda (seq, due_at_ms, due_kind, id)
            SELECT e.seq, least(e.frames_trim_at_ms, e.retention_due_at_ms, e.stream_due_at_ms), 'retention', e.id
                FROM ff.execution e WHERE e.id = ANY (v_ids)
            ON CONFLICT DO NOTHING;
    END IF;
    IF v_overlong IS NOT NULL THEN
        DELETE FROM ff.event v USING unnest(v_overlong) AS u (seq), ff.execution e
            WHERE e.seq = u.seq AND v.seq = u.seq AND v.n = e.history_count - @HISTORY_KEPT@;
    END IF;
    IF ff._is_soon(v_next_due) THEN
        PERFORM ff._announce_due(v_next_due);
    END IF;
    IF cardinality(v_done) = cardinality(p_ids) THEN
        RETURN;
    END IF;
    PERFORM ff._lock_late(c.id, p_ids) FROM unnest(p_ids) WITH ORDINALITY AS c (id, at) WHERE c.at <> ALL (v_done);
    FOR i IN SELECT c.at FROM unnest(p_ids) WITH ORDINALITY AS c (id, at) WHERE c.at <> ALL (v_done) ORDER BY c.id LOOP
        at := i;
        SELECT o.code, o.message, o.details, o.completed_at_ms INTO code, message, details, completed_at_ms
            FROM ff._complete_one(p_partitions[i], p_ids[i], p_lease_ids[i], p_epochs[i], p_attempt_ids[i], p_lanes[i],
                p_routes[i], p_digests[i], p_actors[i], p_types[i], p_results[i]) o;
        RETURN NEXT;
    END LOOP;
END
$$;
