-- Guards of fenced operations in their one order, and the answers to repetitions.

-- The refusal of an execution that is not active.
CREATE FUNCTION ff._not_active(r ff.execution, OUT code text, OUT message text, OUT details jsonb)
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    code := 'execution_not_active';
    message := 'the execution is ' || ff.public_state(r.vector) || ', not active';
    details := jsonb_build_object('terminal_outcome', ff.outcome(r.vector), 'lease_epoch', r.lease_epoch,
        'lifecycle_phase', ff.phase(r.vector), 'attempt_id', r.attempt_id);
END
$$;

-- The details of `execution_not_eligible`.
CREATE FUNCTION ff._not_eligible(r ff.execution) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('public_state', ff.public_state((r).vector), 'blocking', ff.blocking((r).vector))
$$;

-- A refusal, unless the caller holds the live lease (or, without a fence, may act as if). Of a lease whose time is over
-- the refusal comes with the changed row, its history written: `_store(was, r)` belongs to every refusal from here, and
-- writes nothing when nothing changed.
CREATE FUNCTION ff._guard(
    INOUT r ff.execution, p_now bigint, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_lane text, p_route text,
    OUT code text, OUT message text, OUT details jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    refusal record;
BEGIN
    IF r.vector NOT IN (@ACTIVE@) THEN
        refusal := ff._not_active(r);
        code := refusal.code;
        message := refusal.message;
        details := refusal.details;
    ELSIF r.vector = @LEASE_REVOKED@ THEN
        code := 'lease_revoked';
        details := jsonb_build_object('reason', r.lost_reason);
    ELSIF r.vector = @LEASE_EXPIRED@ OR r.lease_id IS NULL THEN
        code := 'lease_expired';
        details := jsonb_build_object('expired_at_ms', r.lost_at_ms);
    ELSIF r.expires_at_ms <= p_now THEN
        code := 'lease_expired';
        details := jsonb_build_object('expired_at_ms', r.expires_at_ms);
        r := ff._expire_lease(r, p_now);
    ELSIF p_lease_id IS NOT NULL AND (
        p_lease_id <> r.lease_id OR p_epoch IS DISTINCT FROM r.lease_epoch
        OR p_attempt_id IS DISTINCT FROM r.attempt_id OR p_lane <> r.lane OR p_route <> r.route
    ) THEN
        code := 'stale_lease';
        details := jsonb_build_object('lease_epoch', r.lease_epoch);
    END IF;
END
$$;

-- The first answer (the text of a JSON array), when this operation, under this fence, with this content, was carried out
-- before; else null.
CREATE FUNCTION ff._repeated(
    r ff.execution, p_operation text, p_lease_id uuid, p_epoch bigint, p_attempt_id uuid, p_digest text
) RETURNS text
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    known text[] := r.answers;
    lease text := p_lease_id::text;
    epoch text := p_epoch::text;
BEGIN
    IF p_lease_id IS NULL OR p_attempt_id IS NULL THEN
        RETURN NULL;
    END IF;
    IF p_attempt_id IS DISTINCT FROM r.attempt_id THEN
        known := NULL;
        SELECT a.answers INTO known FROM ff.attempt a WHERE a.seq = r.seq AND a.attempt_id = p_attempt_id;
    END IF;
    IF known IS NULL THEN
        RETURN NULL;
    END IF;
    FOR at IN 1 .. cardinality(known) BY 5 LOOP
        IF known[at + 1] = lease AND known[at + 2] = epoch AND known[at] = p_operation AND known[at + 3] = p_digest THEN
            RETURN known[at + 4];
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Remember an operation's answer in the attempt under which it was done: the latest eight.
CREATE FUNCTION ff._answered(
    r ff.execution, p_operation text, p_lease_id uuid, p_epoch bigint, p_digest text, p_answer jsonb
) RETURNS ff.execution
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF p_lease_id IS NOT NULL AND r.attempt_id IS NOT NULL THEN
        r.answers := r.answers[greatest(1, cardinality(r.answers) - 34):]
            || ARRAY[p_operation, p_lease_id::text, p_epoch::text, p_digest, p_answer::text];
    END IF;
    RETURN r;
END
$$;
