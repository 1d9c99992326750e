-- Keep a registration alive; one that lapsed must be made again. Answers when it lapses.
-- Refuses: worker_not_registered
CREATE FUNCTION ff.worker_heartbeat(
    p_namespace text, p_instance text, OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now bigint := ff.now_ms();
    expires_at bigint;
BEGIN
    UPDATE ff.worker w SET last_heartbeat_at_ms = now, expires_at_ms = now + w.liveness_ttl_ms,
        due_at_ms = now + w.liveness_ttl_ms
        WHERE w.namespace = p_namespace AND w.instance = p_instance
            AND w.lapsed_at_ms IS NULL AND w.expires_at_ms > now
        RETURNING w.expires_at_ms INTO expires_at;
    IF NOT FOUND THEN
        code := 'worker_not_registered';
        RETURN;
    END IF;
    PERFORM ff._announce_due(expires_at);
    value := jsonb_build_array(expires_at);
END
$$;
