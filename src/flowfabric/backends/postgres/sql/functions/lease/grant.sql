-- Permit one worker to take an execution; it is no longer ready until the grant is used or runs out. Answers `granted`
-- with purpose, expiry and lane, or `reclaim_cap_exceeded` with the count.
-- Refuses: execution_not_found execution_not_reclaimable execution_not_eligible grant_already_exists lane_not_accepting use_claim_resumed_execution not_a_resumed_execution capability_mismatch
-- Also touches: a lease whose time is over is recorded as lost, also before a refusal.

CREATE FUNCTION ff.lease_grant(
    p_partition integer, p_id uuid, p_worker_id text, p_worker_instance text, p_capabilities text[], p_purpose text,
    p_ttl_ms bigint,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    r ff.execution := was;
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    refusal record;
BEGIN
    IF was.seq IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    IF ff._is_overdue(r, now) THEN
        r := ff._expire_lease(r, now);
    END IF;
    refusal := ff._grant_refusal(r, now, p_capabilities, p_purpose);
    IF refusal.code IS NOT NULL THEN
        code := refusal.code;
        message := refusal.message;
        details := refusal.details;
    ELSIF r.vector IN (@ACTIVE@) AND ff._at_reclaim_cap(r) THEN
        value := jsonb_build_array('reclaim_cap_exceeded', r.reclaim_count);
        r := ff._cap_reached(r, now);
    ELSE
        r.grant_purpose := ff._purpose(r);
        r.grant_worker_id := p_worker_id;
        r.grant_worker_instance := p_worker_instance;
        r.granted_at_ms := now;
        r.grant_expires_at_ms := now + p_ttl_ms;
        r.last_mutation_at_ms := now;
        value := jsonb_build_array('granted', r.grant_purpose, r.grant_expires_at_ms, r.lane);
    END IF;
    PERFORM ff._store(was, r);
END
$$;

-- Why no grant is given, or nulls.
CREATE FUNCTION ff._grant_refusal(
    r ff.execution, p_now bigint, p_capabilities text[], p_purpose text,
    OUT code text, OUT message text, OUT details jsonb
)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    is_lost boolean := r.vector IN (@LEASE_EXPIRED@, @LEASE_REVOKED@);
    lane_state text;
    missing text[];
    wrong record;
BEGIN
    IF p_purpose = 'reclaim' AND NOT is_lost THEN
        code := 'execution_not_reclaimable';
        details := jsonb_build_object('public_state', ff.public_state(r.vector));
        RETURN;
    END IF;
    IF NOT is_lost AND r.vector NOT IN (@ELIGIBLE@) THEN
        code := 'execution_not_eligible';
        details := jsonb_build_object('public_state', ff.public_state(r.vector));
        RETURN;
    END IF;
    IF r.grant_expires_at_ms > p_now THEN
        code := 'grant_already_exists';
        details := jsonb_build_object('expires_at_ms', r.grant_expires_at_ms);
        RETURN;
    END IF;
    lane_state := coalesce((SELECT l.state FROM ff.lane l WHERE l.lane = r.lane), 'active');
    IF lane_state NOT IN (@LANE_ACCEPTS_CLAIMS@) THEN
        code := 'lane_not_accepting';
        message := 'lane ' || r.lane || ' is ' || lane_state || ' and gives no work out';
        details := jsonb_build_object('lane', r.lane, 'state', lane_state);
        RETURN;
    END IF;
    wrong := ff._wrong_purpose(p_purpose, ff._purpose(r));
    IF wrong.code IS NOT NULL THEN
        code := wrong.code;
        message := wrong.message;
        RETURN;
    END IF;
    SELECT array_agg(x.capability ORDER BY x.capability COLLATE "C") INTO missing
        FROM ff.route y CROSS JOIN unnest(y.required) AS x (capability)
        WHERE y.id = r.route_id AND x.capability <> ALL (p_capabilities);
    IF missing IS NOT NULL THEN
        code := 'capability_mismatch';
        message := 'the worker lacks ' || array_to_string(missing, ', ');
        details := jsonb_build_object('missing', missing);
    END IF;
END
$$;

-- The refusal of a grant for another purpose than the execution's state calls for, or nulls.
CREATE FUNCTION ff._wrong_purpose(p_asked text, p_needed text, OUT code text, OUT message text)
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF p_asked IS NULL OR p_asked = p_needed THEN
        RETURN;
    END IF;
    IF p_asked = 'reclaim' THEN
        code := 'execution_not_reclaimable';
    ELSIF p_needed = 'resume' THEN
        code := 'use_claim_resumed_execution';
    ELSIF p_asked = 'resume' THEN
        code := 'not_a_resumed_execution';
    ELSE
        code := 'execution_not_eligible';
        message := 'the execution lost its lease: use a grant with purpose `reclaim`';
    END IF;
END
$$;
