-- Use a grant. Answers `taken` with the lease (the columns that a claim answers with, by name, but for definition and
-- input), or `reclaim_cap_exceeded` with the count.
-- Refuses: execution_not_found execution_not_leaseable lease_conflict invalid_claim_grant claim_grant_expired use_claim_resumed_execution not_a_resumed_execution execution_not_reclaimable

CREATE FUNCTION ff.lease_claim_granted(
    p_partition integer, p_id uuid, p_worker_id text, p_worker_instance text, p_purpose text, p_ttl_ms bigint,
    p_lease_id uuid, p_attempt_id uuid,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    r ff.execution;
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    wrong record;
BEGIN
    IF was.seq IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    IF was.vector = @LEASED@ THEN
        IF p_lease_id = was.lease_id AND p_worker_instance = was.worker_instance AND was.attempt_id IS NOT NULL
            AND (p_attempt_id IS NULL OR p_attempt_id = was.attempt_id OR was.attempt_epoch <> was.lease_epoch)
            AND was.expires_at_ms > now
        THEN
            value := jsonb_build_array('taken', ff._leased(was));
        ELSE
            code := 'lease_conflict';
        END IF;
        RETURN;
    END IF;
    IF was.vector NOT IN (@RUNNABLE@, @ACTIVE@) THEN
        code := 'execution_not_leaseable';
        details := jsonb_build_object('public_state', ff.public_state(was.vector));
        RETURN;
    END IF;
    IF was.grant_worker_id IS DISTINCT FROM p_worker_id THEN
        code := 'invalid_claim_grant';
        RETURN;
    END IF;
    IF was.grant_expires_at_ms <= now THEN
        code := 'claim_grant_expired';
        details := jsonb_build_object('expired_at_ms', was.grant_expires_at_ms);
        RETURN;
    END IF;
    wrong := ff._wrong_purpose(p_purpose, ff._purpose(was));
    IF wrong.code IS NOT NULL THEN
        code := CASE wrong.code WHEN 'execution_not_eligible' THEN 'execution_not_leaseable' ELSE wrong.code END;
        message := wrong.message;
        RETURN;
    END IF;
    r := ff._end_instead(was, now);
    IF r.vector IN (@TERMINAL@) THEN
        IF ff.outcome(r.vector) = 'failed' THEN
            value := jsonb_build_array('reclaim_cap_exceeded', was.reclaim_count);
        ELSE
            code := 'execution_not_leaseable';
            message := 'the execution''s deadline has passed';
        END IF;
        PERFORM ff._store(was, r);
        RETURN;
    END IF;
    r := ff._take(was, now, p_worker_id, p_worker_instance, p_ttl_ms, NULL, coalesce(p_lease_id, gen_random_uuid()),
        coalesce(p_attempt_id, gen_random_uuid()));
    PERFORM ff._store(was, r);
    value := jsonb_build_array('taken', ff._leased(r));
END
$$;

-- A lease as its holder gets it, but for definition and input.
CREATE FUNCTION ff._leased(r ff.execution) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    RETURN jsonb_build_object(
        'id', r.id,
        'partition', r.partition,
        'seq', r.seq,
        'created_at_ms', r.created_at_ms,
        'priority', r.priority,
        'lease_id', r.lease_id,
        'lease_epoch', r.lease_epoch,
        'ttl_ms', r.ttl_ms,
        'expires_at_ms', r.expires_at_ms,
        'attempt_id', r.attempt_id,
        'attempt_index', r.attempt_index,
        'attempt_type', r.attempt_type,
        'attempt_epoch', r.attempt_epoch,
        'timeout_at_ms', r.timeout_at_ms,
        'deadline_at_ms', r.deadline_at_ms,
        'retry_count', r.retry_count,
        'frame_sequence', coalesce(
            (SELECT s.last_sequence FROM ff.stream s WHERE s.seq = r.seq AND s.attempt_index = r.attempt_index), 0),
        'tags', r.tags::text
    );
END
$$;
