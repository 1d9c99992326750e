-- How an execution ends, fails, and loses its lease: the same steps for every operation. They change the row in memory
-- (and append to the history); `_store` writes it. Nothing here refuses.

-- Append to the history, of which the latest are kept. The entry names the lease and the attempt as `r` has them, so this
-- comes before the step that gives them up.
CREATE FUNCTION ff._happened(
    r ff.execution, p_now bigint, p_name text, p_reason text, p_outcome text, p_actor text
) RETURNS ff.execution
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    r.history_count := r.history_count + 1;
    INSERT INTO ff.event (seq, n, at_ms, name, reason, lease_id, lease_epoch, attempt_id, attempt_index,
            worker_instance, outcome, actor)
        VALUES (r.seq, r.history_count, p_now, p_name, p_reason, r.lease_id, r.lease_epoch, r.attempt_id,
            r.attempt_index, CASE WHEN r.lease_id IS NOT NULL THEN r.worker_instance END, p_outcome,
            nullif(p_actor, ''));
    IF r.history_count > @HISTORY_KEPT@ THEN
        DELETE FROM ff.event v WHERE v.seq = r.seq AND v.n = r.history_count - @HISTORY_KEPT@;
    END IF;
    RETURN r;
END
$$;

CREATE FUNCTION ff._close_stream(r ff.execution, p_now bigint, p_reason text) RETURNS ff.execution
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF r.stream_closed_at_ms IS NULL THEN
        r.stream_closed_at_ms := p_now;
        r.stream_closed_reason := p_reason;
    END IF;
    RETURN r;
END
$$;

CREATE FUNCTION ff._drop_lease(r ff.execution) RETURNS ff.execution
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    r.lease_id := NULL;
    r.claim_id := NULL;
    r.acquired_at_ms := NULL;
    r.renewed_at_ms := NULL;
    r.ttl_ms := NULL;
    r.expires_at_ms := NULL;
    r.lost_at_ms := NULL;
    r.lost_reason := NULL;
    r.reclaim_at_ms := NULL;
    r.reclaim_ready := false;
    r.reclaim_exempt := false;
    RETURN r;
END
$$;

CREATE FUNCTION ff._drop_grant(r ff.execution) RETURNS ff.execution
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    r.grant_purpose := NULL;
    r.grant_worker_id := NULL;
    r.grant_worker_instance := NULL;
    r.granted_at_ms := NULL;
    r.grant_expires_at_ms := NULL;
    RETURN r;
END
$$;

-- End the execution: its attempt, stream, lease, timers and waiting all end with it. `p_failure` is the execution's and
-- its attempt's; `p_attempt_failure` that of the attempt alone.
CREATE FUNCTION ff._finish(
    r ff.execution, p_outcome text, p_now bigint, p_failure text[], p_attempt_failure text[]
) RETURNS ff.execution
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    retention bigint := coalesce(r.retention_ms, @RETENTION_DEFAULT_MS@);
BEGIN
    IF r.attempt_id IS NULL THEN
        r.vector := ff.ended_vector(p_outcome,
            CASE ff.attempt_of(r.vector) WHEN 'pending_first_attempt' THEN 'pending_first_attempt' ELSE 'none' END);
    ELSE
        r.vector := ff.ended_vector(p_outcome, 'attempt_terminal');
        IF r.attempt_state NOT IN (@ATTEMPT_ENDED@) THEN
            r := ff._close_stream(r, p_now, CASE p_outcome
                WHEN 'success' THEN 'attempt_success'
                WHEN 'failed' THEN 'attempt_failure'
                WHEN 'expired' THEN 'expired'
                ELSE 'attempt_cancelled'
            END);
            r.attempt_state := CASE
                WHEN p_outcome = 'success' THEN 'ended_success'
                WHEN p_outcome IN ('failed', 'expired') THEN 'ended_failure'
                ELSE 'ended_cancelled'
            END;
            r.attempt_ended_at_ms := p_now;
            r.timeout_at_ms := NULL;
            r.attempt_failure := coalesce(p_failure, p_attempt_failure, r.attempt_failure);
        END IF;
    END IF;
    r := ff._drop_grant(ff._drop_lease(r));
    r.not_before_ms := NULL;
    r.blocking_detail := NULL;
    r.completed_at_ms := p_now;
    r.last_mutation_at_ms := p_now;
    r.failure := p_failure;
    r.retention_due_at_ms := p_now + retention;
    r.frames_trim_at_ms := CASE WHEN r.frames_ttl_ms < retention THEN p_now + r.frames_ttl_ms END;
    RETURN r;
END
$$;

-- Give the lease back without ending.
CREATE FUNCTION ff._leave(r ff.execution, p_vector smallint, p_now bigint) RETURNS ff.execution
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    r := ff._drop_lease(r);
    r.vector := p_vector;
    r.last_mutation_at_ms := p_now;
    RETURN r;
END
$$;

-- How long to wait before the retry after `r.retry_count` earlier ones; jitter takes half to all of it. It is the same
-- number on every backend: from SHA-256 of the execution id and the count, in the same floating-point steps.
CREATE FUNCTION ff._retry_delay(r ff.execution) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    delay double precision;
    growth double precision;
    head bytea;
BEGIN
    IF r.backoff_kind = 'fixed' THEN
        delay := r.backoff_delay_ms;
    ELSE
        delay := r.backoff_max_ms;
        IF r.retry_count < 2000 THEN
            growth := ln(r.backoff_multiplier) * r.retry_count;
            -- Where the power is beyond every delay, only whether it is finite matters, and only for a delay of 0.
            IF growth < 500 THEN
                delay := least(r.backoff_delay_ms * power(r.backoff_multiplier, r.retry_count), delay);
            ELSIF r.backoff_delay_ms = 0 THEN
                BEGIN
                    PERFORM power(r.backoff_multiplier, r.retry_count);
                    delay := 0;
                EXCEPTION WHEN numeric_value_out_of_range THEN
                    NULL;
                END;
            END IF;
        ELSIF r.backoff_multiplier = 1 OR r.backoff_delay_ms = 0 THEN
            delay := least(r.backoff_delay_ms, delay);
        END IF;
    END IF;
    IF r.backoff_jitter THEN
        head := sha256(convert_to(ff._execution_id(r.partition, r.id) || ':' || r.retry_count, 'UTF8'));
        delay := delay * (0.5::double precision + (
            (get_byte(head, 0) * 16777216::bigint + get_byte(head, 1) * 65536
                + get_byte(head, 2) * 256 + get_byte(head, 3))::double precision * 4294967296::double precision
            + (get_byte(head, 4) * 16777216::bigint + get_byte(head, 5) * 65536
                + get_byte(head, 6) * 256 + get_byte(head, 7))::double precision
        ) / 36893488147419103232::double precision);
    END IF;
    RETURN floor(delay)::bigint;
END
$$;

-- Whether a failure of this class and category is followed by a retry.
CREATE FUNCTION ff._may_retry(r ff.execution, p_class text, p_category text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce((r).retry_count < (r).max_retries, false)
        AND (p_class IN (@RETRYABLE_CLASSES@) OR coalesce(p_category = ANY ((r).retryable_categories), false))
$$;

-- Fail the running attempt, by its worker or by its time limit, with its history. A retry follows unless the phase is
-- `terminal` then.
CREATE FUNCTION ff._fail(
    r ff.execution, p_now bigint, p_class text, p_category text, p_message text, p_actor text
) RETURNS ff.execution
LANGUAGE plpgsql AS $$
DECLARE
    failure text[] := ARRAY[p_class, p_category, p_message];
    delay bigint;
BEGIN
    IF NOT ff._may_retry(r, p_class, p_category) THEN
        r := ff._happened(r, p_now, 'released', 'failed_terminal', 'failed', p_actor);
        RETURN ff._finish(r, 'failed', p_now, failure, NULL);
    END IF;
    r := ff._happened(r, p_now, 'released', 'failed_retry_scheduled', NULL, p_actor);
    IF r.attempt_id IS NOT NULL THEN
        r := ff._close_stream(r, p_now, 'attempt_failure');
        r.attempt_state := 'ended_failure';
        r.attempt_ended_at_ms := p_now;
        r.timeout_at_ms := NULL;
        r.attempt_failure := failure;
    END IF;
    delay := ff._retry_delay(r);
    IF delay > 0 THEN
        r := ff._leave(r, ff.delayed_vector('waiting_for_retry_backoff', 'pending_retry_attempt'), p_now);
        r.not_before_ms := p_now + delay;
    ELSE
        r := ff._leave(r, ff.eligible_vector('pending_retry_attempt'), p_now);
        r.not_before_ms := NULL;
    END IF;
    r.retry_count := r.retry_count + 1;
    r.failure := failure;
    RETURN r;
END
$$;

CREATE FUNCTION ff._at_reclaim_cap(r ff.execution) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT NOT (r).reclaim_exempt
        AND (r).reclaim_count >= coalesce((r).max_reclaim_count, @RECLAIM_COUNT_DEFAULT@)
$$;

CREATE FUNCTION ff._finish_at_cap(r ff.execution, p_now bigint) RETURNS ff.execution
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN ff._finish(r, 'failed', p_now, ARRAY['infra_crash', 'max_reclaims_exceeded',
        'the execution lost its lease ' || (r.reclaim_count + 1) || ' times, its policy allows ' || r.reclaim_count
            || ' takeovers'], NULL);
END
$$;

-- Take the lease away, with its history; after its grace the execution is claimable, or ended at the reclaim cap.
-- `p_exempt`: a worker hands its work back, which skips grace and cap.
CREATE FUNCTION ff._lose(
    r ff.execution, p_now bigint, p_revoked boolean, p_lost_at bigint, p_reason text, p_exempt boolean
) RETURNS ff.execution
LANGUAGE plpgsql AS $$
DECLARE
    name text := CASE WHEN p_exempt THEN 'released' WHEN p_revoked THEN 'revoked' ELSE 'expired' END;
    claimable_at bigint := p_lost_at + CASE WHEN p_exempt THEN 0 ELSE coalesce(r.reclaim_grace_ms, 0) END;
    is_capped boolean;
BEGIN
    r.reclaim_exempt := p_exempt;
    is_capped := claimable_at <= p_now AND ff._at_reclaim_cap(r);
    IF is_capped THEN
        r := ff._happened(r, p_now, name, 'max_reclaims_exceeded', 'failed', NULL);
    ELSE
        r := ff._happened(r, p_now, name, p_reason, NULL, NULL);
    END IF;
    IF r.attempt_id IS NOT NULL AND NOT p_revoked THEN
        r := ff._close_stream(r, p_now, 'lease_expired');
    END IF;
    r.vector := CASE WHEN p_revoked THEN @LEASE_REVOKED@ ELSE @LEASE_EXPIRED@ END;
    r.lost_at_ms := p_lost_at;
    r.lost_reason := p_reason;
    r.reclaim_ready := claimable_at <= p_now;
    r.reclaim_at_ms := CASE WHEN claimable_at > p_now THEN claimable_at END;
    r.last_mutation_at_ms := p_now;
    IF is_capped THEN
        r := ff._finish_at_cap(r, p_now);
    END IF;
    RETURN r;
END
$$;

-- Record that the lease's time is over.
CREATE FUNCTION ff._expire_lease(r ff.execution, p_now bigint) RETURNS ff.execution
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ff._lose(r, p_now, false, r.expires_at_ms, 'lease_expired', false);
END
$$;

CREATE FUNCTION ff._is_overdue(r ff.execution, p_now bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT (r).vector = @LEASED@ AND (r).expires_at_ms <= p_now
$$;

-- End the execution because its deadline passed.
CREATE FUNCTION ff._expire_at_deadline(r ff.execution, p_now bigint) RETURNS ff.execution
LANGUAGE plpgsql AS $$
BEGIN
    r := ff._happened(r, p_now, CASE WHEN r.vector = @LEASED@ THEN 'released' ELSE 'ended' END,
        'expired:execution_deadline', 'expired', 'system_timeout');
    RETURN ff._finish(r, 'expired', p_now,
        ARRAY['timeout', 'execution_deadline', 'the execution''s deadline passed'], NULL);
END
$$;

-- End lost work that may not be taken over once more.
CREATE FUNCTION ff._cap_reached(r ff.execution, p_now bigint) RETURNS ff.execution
LANGUAGE plpgsql AS $$
BEGIN
    r := ff._happened(r, p_now, 'ended', 'max_reclaims_exceeded', 'failed', NULL);
    RETURN ff._finish_at_cap(r, p_now);
END
$$;

-- End an execution that must not run any more; it did when the phase is `terminal` then.
CREATE FUNCTION ff._end_instead(r ff.execution, p_now bigint) RETURNS ff.execution
LANGUAGE plpgsql AS $$
BEGIN
    IF r.deadline_at_ms <= p_now THEN
        RETURN ff._expire_at_deadline(r, p_now);
    END IF;
    IF r.vector IN (@ACTIVE@) AND ff._at_reclaim_cap(r) THEN
        RETURN ff._cap_reached(r, p_now);
    END IF;
    RETURN r;
END
$$;

-- The earlier of the absolute deadline and the relative one, which counts from the run's start.
CREATE FUNCTION ff._deadline_at(p_absolute bigint, p_relative bigint, p_run_started bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT least(p_absolute, p_run_started + p_relative)
$$;
