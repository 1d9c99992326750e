-- Take an execution away from its worker. Answers `revoked` with lease id and epoch, or `already_satisfied` and why.
-- Refuses: execution_not_found execution_not_active stale_lease
-- Also touches: a lease whose time is over is recorded as lost.

CREATE FUNCTION ff.lease_revoke(
    p_partition integer, p_id uuid, p_expected_lease_id uuid, p_worker_instance text, p_reason text,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    refusal record;
BEGIN
    IF was.seq IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
    ELSIF was.vector IN (@TERMINAL@) THEN
        refusal := ff._not_active(was);
        code := refusal.code;
        message := refusal.message;
        details := refusal.details;
    ELSIF was.vector NOT IN (@ACTIVE@) OR was.lease_id IS NULL THEN
        value := '["already_satisfied", "no_active_lease"]';
    ELSIF was.vector = @LEASE_REVOKED@ THEN
        value := '["already_satisfied", "already_revoked"]';
    ELSIF was.vector = @LEASE_EXPIRED@ THEN
        value := '["already_satisfied", "already_expired"]';
    ELSIF was.expires_at_ms <= now THEN
        value := '["already_satisfied", "already_expired"]';
        PERFORM ff._store(was, ff._expire_lease(was, now));
    ELSIF p_expected_lease_id <> was.lease_id THEN
        code := 'stale_lease';
        details := jsonb_build_object('lease_epoch', was.lease_epoch);
    ELSIF p_worker_instance <> was.worker_instance THEN
        value := '["already_satisfied", "different_worker_instance"]';
    ELSE
        value := jsonb_build_array('revoked', was.lease_id, was.lease_epoch);
        PERFORM ff._store(was, ff._lose(was, now, true, now, p_reason, false));
    END IF;
END
$$;
