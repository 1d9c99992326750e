-- Hold an eligible execution back; blocking it again for the same reason changes nothing. Answers public state and
-- blocking reason.
-- Refuses: execution_not_found execution_not_active execution_not_eligible invalid_blocking_reason
-- Also touches: nothing.
CREATE FUNCTION ff.execution_block(
    p_partition integer, p_id uuid, p_reason text, p_detail text,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    now bigint := greatest(ff.now_ms(), was.last_mutation_at_ms);
    r ff.execution := was;
    is_reason boolean := p_reason IN (@BLOCKING_REASONS@);
    refusal record;
BEGIN
    IF was.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    IF r.vector IN (@TERMINAL@) THEN
        refusal := ff._not_active(r);
        code := refusal.code;
        message := refusal.message;
        details := refusal.details;
        RETURN;
    END IF;
    IF r.vector IN (@RUNNABLE@) AND is_reason AND ff.blocking(r.vector) = p_reason THEN
        value := jsonb_build_array(ff.public_state(r.vector), p_reason);
        RETURN;
    END IF;
    IF r.vector NOT IN (@ELIGIBLE@) THEN
        code := 'execution_not_eligible';
        message := 'only an eligible execution can be blocked';
        details := ff._not_eligible(r);
        RETURN;
    END IF;
    IF is_reason IS NOT TRUE THEN
        code := 'invalid_blocking_reason';
        details := jsonb_build_object('reason', p_reason);
        RETURN;
    END IF;
    r := ff._drop_grant(r);
    r.vector := ff.blocked_vector(p_reason, ff.attempt_of(r.vector));
    r.blocking_detail := nullif(p_detail, '');
    r.last_mutation_at_ms := now;
    PERFORM ff._store(was, r);
    value := jsonb_build_array(ff.public_state(r.vector), p_reason);
END
$$;
