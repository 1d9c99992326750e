-- Mark an overdue registration as lapsed; forget one that lapsed long ago. Answers what was done.
CREATE FUNCTION ff.worker_expire(
    p_namespace text, p_instance text, OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now bigint := ff.now_ms();
    known ff.worker;
BEGIN
    SELECT * INTO known FROM ff.worker w WHERE w.namespace = p_namespace AND w.instance = p_instance FOR UPDATE;
    IF NOT FOUND OR known.due_at_ms > now THEN
        value := '["not_due"]';
    ELSIF known.lapsed_at_ms IS NOT NULL THEN
        DELETE FROM ff.worker w WHERE w.namespace = p_namespace AND w.instance = p_instance;
        value := '["removed"]';
    ELSE
        UPDATE ff.worker w SET lapsed_at_ms = known.expires_at_ms,
            due_at_ms = known.expires_at_ms + @WORKER_KEPT_AFTER_LAPSE_MS@
            WHERE w.namespace = p_namespace AND w.instance = p_instance;
        value := '["lapsed"]';
    END IF;
END
$$;
