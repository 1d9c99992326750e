-- Record leases and grants that ran out; make lost work claimable when its grace is over, or end it at the cap. Answers
-- with what was done, one row per command.
-- Refuses: execution_not_found
-- Rows are locked in the order of ids.

CREATE FUNCTION ff.lease_expire(p_partitions integer[], p_ids uuid[]) RETURNS TABLE (
    at integer,
    code text,
    message text,
    details jsonb,
    status text
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := ff.now_ms();
    v_was ff.execution;
BEGIN
    FOR at IN
        SELECT c.at::integer FROM unnest(p_ids) WITH ORDINALITY AS c (id, at) ORDER BY c.id
    LOOP
        v_was := ff._open(p_partitions[at], p_ids[at]);
        IF v_was.seq IS NULL THEN
            code := 'execution_not_found';
            details := ff._absent(p_partitions[at], p_ids[at]);
            status := NULL;
        ELSE
            code := NULL;
            details := NULL;
            status := ff._expire(v_was, greatest(v_now, v_was.last_mutation_at_ms));
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE FUNCTION ff._expire(was ff.execution, p_now bigint) RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r ff.execution := was;
    status text := 'not_due';
BEGIN
    IF ff._is_overdue(r, p_now) THEN
        r := ff._expire_lease(r, p_now);
        status := CASE WHEN r.vector IN (@TERMINAL@) THEN 'failed' ELSE 'expired' END;
    ELSE
        IF r.grant_expires_at_ms <= p_now THEN
            r := ff._drop_grant(r);
            r.last_mutation_at_ms := p_now;
            status := 'grant_expired';
        END IF;
        IF r.reclaim_at_ms <= p_now THEN
            IF ff._at_reclaim_cap(r) THEN
                r := ff._cap_reached(r, p_now);
                status := 'failed';
            ELSE
                r.reclaim_at_ms := NULL;
                r.reclaim_ready := true;
                r.last_mutation_at_ms := p_now;
                status := 'reclaimable';
            END IF;
        END IF;
    END IF;
    PERFORM ff._store(was, r);
    RETURN status;
END
$$;
