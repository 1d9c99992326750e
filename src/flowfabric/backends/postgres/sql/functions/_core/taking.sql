-- Leasing an execution: continue its interrupted attempt, or start the attempt its state calls for.

-- Lease it, with its history. The attempt that a new one supersedes moves to `ff.attempt`.
CREATE FUNCTION ff._take(
    r ff.execution, p_now bigint, p_worker_id text, p_worker_instance text, p_ttl_ms bigint, p_claim_id uuid,
    p_lease_id uuid, p_attempt_id uuid
) RETURNS ff.execution
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    is_reclaim boolean := r.vector IN (@ACTIVE@);
    waiting text := ff.attempt_of(r.vector);
    timeout bigint := p_now + r.attempt_timeout_ms;
BEGIN
    r.lease_epoch := r.lease_epoch + 1;
    IF NOT is_reclaim AND waiting = 'attempt_interrupted' AND r.attempt_id IS NOT NULL THEN
        r.attempt_state := 'started';
        r.timeout_at_ms := timeout;
    ELSE
        IF r.attempt_id IS NOT NULL THEN
            IF is_reclaim THEN
                r := ff._close_stream(r, p_now, 'reclaimed');
                r.attempt_state := 'interrupted_reclaimed';
                r.attempt_ended_at_ms := p_now;
                r.timeout_at_ms := NULL;
            END IF;
            INSERT INTO ff.attempt (seq, attempt_index, attempt_id, attempt_type, attempt_state,
                    attempt_started_at_ms, worker_id, worker_instance, attempt_epoch, timeout_at_ms,
                    previous_attempt_index, attempt_ended_at_ms, attempt_failure, stream_closed_at_ms,
                    stream_closed_reason, answers)
                VALUES (r.seq, r.attempt_index, r.attempt_id, r.attempt_type, r.attempt_state,
                    r.attempt_started_at_ms, r.worker_id, r.worker_instance, r.attempt_epoch, r.timeout_at_ms,
                    r.previous_attempt_index, r.attempt_ended_at_ms, r.attempt_failure, r.stream_closed_at_ms,
                    r.stream_closed_reason, r.answers);
        END IF;
        r.previous_attempt_index := r.attempt_index;
        r.attempt_id := p_attempt_id;
        r.attempt_index := r.total_attempt_count;
        r.attempt_type := CASE
            WHEN is_reclaim THEN 'reclaim'
            WHEN waiting = 'pending_first_attempt' THEN 'initial'
            WHEN waiting = 'pending_retry_attempt' THEN 'retry'
            WHEN waiting = 'pending_replay_attempt' THEN 'replay'
        END;
        r.attempt_state := 'started';
        r.attempt_started_at_ms := p_now;
        r.attempt_epoch := r.lease_epoch;
        r.timeout_at_ms := timeout;
        r.attempt_ended_at_ms := NULL;
        r.attempt_failure := NULL;
        r.answers := NULL;
        r.stream_closed_at_ms := NULL;
        r.stream_closed_reason := NULL;
        r.total_attempt_count := r.total_attempt_count + 1;
    END IF;
    IF is_reclaim AND NOT r.reclaim_exempt THEN
        r.reclaim_count := r.reclaim_count + 1;
    END IF;
    r := ff._drop_grant(ff._drop_lease(r));
    r.vector := @LEASED@;
    r.lease_id := p_lease_id;
    r.claim_id := p_claim_id;
    r.worker_id := p_worker_id;
    r.worker_instance := p_worker_instance;
    r.acquired_at_ms := p_now;
    r.ttl_ms := p_ttl_ms;
    r.expires_at_ms := p_now + p_ttl_ms;
    r.started_at_ms := coalesce(r.started_at_ms, p_now);
    r.last_mutation_at_ms := p_now;
    RETURN ff._happened(r, p_now, CASE WHEN is_reclaim THEN 'reclaimed' ELSE 'acquired' END, NULL, NULL, NULL);
END
$$;

-- Which kind of grant an execution needs.
CREATE FUNCTION ff._purpose(r ff.execution) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN (r).vector IN (@ACTIVE@) THEN 'reclaim'
        WHEN ff.attempt_of((r).vector) = 'attempt_interrupted' THEN 'resume'
        ELSE 'claim'
    END
$$;
