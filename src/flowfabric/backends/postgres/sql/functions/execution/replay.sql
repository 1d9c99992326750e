-- Run a finished execution again: retries, takeovers and deadline start over, the result is cleared. Answers the public
-- state and the count of replays.
-- Refuses: execution_not_found execution_not_eligible execution_not_terminal max_replays_exhausted
-- Also touches: ff.result, which it deletes.
CREATE FUNCTION ff.execution_replay(
    p_partition integer, p_id uuid, p_actor text, p_expected integer,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    r ff.execution := was;
BEGIN
    IF was.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    IF r.replay_count <> p_expected THEN
        IF r.replay_count = p_expected + 1 THEN
            value := jsonb_build_array(ff.public_state(r.vector), r.replay_count);
            RETURN;
        END IF;
        code := 'execution_not_eligible';
        message := 'it was replayed ' || r.replay_count || ' times';
        details := jsonb_build_object('replay_count', r.replay_count);
        RETURN;
    END IF;
    IF r.vector NOT IN (@TERMINAL@) THEN
        code := 'execution_not_terminal';
        details := jsonb_build_object('public_state', ff.public_state(r.vector));
        RETURN;
    END IF;
    IF r.replay_count >= coalesce(r.max_replay_count, @REPLAY_COUNT_DEFAULT@) THEN
        code := 'max_replays_exhausted';
        details := jsonb_build_object('replay_count', r.replay_count);
        RETURN;
    END IF;

    r := ff._happened(r, now, 'replay_initiated', NULL, NULL, p_actor);
    r.replays := coalesce(r.replays, '[]') || jsonb_build_array(jsonb_build_object('replayed_at_ms', now,
        'outcome', ff.outcome(r.vector), 'completed_at_ms', coalesce(r.completed_at_ms, now), 'actor', p_actor,
        'last_attempt_index', r.attempt_index));
    IF jsonb_array_length(r.replays) > @REPLAY_COUNT_DEFAULT@ THEN
        r.replays := r.replays - 0;
    END IF;
    DELETE FROM ff.result WHERE seq = r.seq;
    r.has_result := false;
    r.vector := ff.eligible_vector('pending_replay_attempt');
    r.eligible_since_ms := now;
    r.run_started_at_ms := now;
    r.last_mutation_at_ms := now;
    r.deadline_at_ms := ff._deadline_at(
        CASE WHEN r.absolute_deadline_ms > now THEN r.absolute_deadline_ms END, r.relative_deadline_ms, now);
    r.retry_count := 0;
    r.reclaim_count := 0;
    r.replay_count := r.replay_count + 1;
    r.completed_at_ms := NULL;
    r.retention_due_at_ms := NULL;
    r.frames_trim_at_ms := NULL;
    r.failure := NULL;
    r.cancel_reason := NULL;
    r.cancelled_by := NULL;
    r.progress_percent := NULL;
    r.progress_message := NULL;
    r.progress_at_ms := NULL;
    PERFORM ff._store(was, r);
    value := jsonb_build_array(ff.public_state(r.vector), r.replay_count);
END
$$;
