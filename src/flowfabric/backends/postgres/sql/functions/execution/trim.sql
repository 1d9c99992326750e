-- Delete what retention says: finished executions, their frames, or the frames of lossy streams that expired, each if it
-- is due: one execution per position. Answers what was done; `more`: a bounded part, call again for the rest.
-- Refuses: execution_not_found
-- Also touches: everything that belongs to the execution. Finished executions without frames, which most are, go with one
-- statement for all; the rest goes step by step, and does not wait out of turn. Frames go before their execution, so
-- what is left in between is right.
CREATE FUNCTION ff.execution_trim(p_partitions integer[], p_ids uuid[])
RETURNS TABLE (at integer, code text, message text, details jsonb, status text)
LANGUAGE plpgsql
SET plan_cache_mode TO force_generic_plan
SET enable_bitmapscan TO off
SET enable_hashjoin TO off
SET enable_mergejoin TO off
AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := ff.now_ms();
    v_left integer := 20000;
    v_done bigint[];
    v_ids uuid[];
    was ff.execution;
    r ff.execution;
    dropped record;
    i integer;
BEGIN
    WITH gone AS (
        DELETE FROM ff.execution e
            USING (
                SELECT * FROM unnest(p_partitions, p_ids) WITH ORDINALITY AS c (partition, id, at) ORDER BY c.id
            ) g
            WHERE e.id = g.id AND e.partition = g.partition AND e.vector IN (@TERMINAL@)
                AND e.retention_due_at_ms <= greatest(v_now, e.last_mutation_at_ms)
                AND NOT EXISTS (
                    SELECT FROM ff.stream s
                        WHERE s.seq = e.seq AND s.durable_kept + s.summary_kept + s.best_effort_kept > 0
                )
            RETURNING g.at, e.seq, e.id
    ), agenda AS (
        DELETE FROM ff.agenda x USING gone t WHERE x.seq = t.seq
    ), definition AS (
        DELETE FROM ff.definition x USING gone t WHERE x.seq = t.seq
    ), result AS (
        DELETE FROM ff.result x USING gone t WHERE x.seq = t.seq
    ), attempt AS (
        DELETE FROM ff.attempt x USING gone t WHERE x.seq = t.seq
    ), event AS (
        DELETE FROM ff.event x USING gone t WHERE x.seq = t.seq
    ), stream AS (
        DELETE FROM ff.stream x USING gone t WHERE x.seq = t.seq
    )
    SELECT array_agg(t.at), array_agg(t.id) INTO v_done, v_ids FROM gone t;
    IF v_done IS NOT NULL THEN
        PERFORM ff._announce_change(u.id) FROM unnest(v_ids) AS u (id);
        RETURN QUERY SELECT u.at::integer, NULL::text, NULL::text, NULL::jsonb, 'deleted' FROM unnest(v_done) AS u (at);
        IF cardinality(v_done) = cardinality(p_ids) THEN
            RETURN;
        END IF;
    END IF;
    PERFORM ff._lock_late(c.id, p_ids) FROM unnest(p_ids) WITH ORDINALITY AS c (id, at)
        WHERE v_done IS NULL OR c.at <> ALL (v_done);
    FOR i IN
        SELECT c.at FROM unnest(p_ids) WITH ORDINALITY AS c (id, at)
            WHERE v_done IS NULL OR c.at <> ALL (v_done) ORDER BY c.id
    LOOP
        at := i;
        code := NULL;
        details := NULL;
        status := 'not_due';
        was := ff._open(p_partitions[i], p_ids[i]);
        IF was.id IS NULL THEN
            code := 'execution_not_found';
            details := ff._absent(p_partitions[i], p_ids[i]);
            status := NULL;
            RETURN NEXT;
            CONTINUE;
        END IF;
        r := was;
        v_now := greatest(ff.now_ms(), was.last_mutation_at_ms);
        IF v_left <= 0 THEN
            status := 'more';
        ELSIF was.vector IN (@TERMINAL@) AND least(was.retention_due_at_ms, was.frames_trim_at_ms) <= v_now THEN
            dropped := ff._drop_frames(was.seq, NULL, v_left);
            v_left := v_left - dropped.dropped;
            IF NOT dropped.is_done THEN
                status := 'more';
            ELSIF was.retention_due_at_ms <= v_now THEN
                DELETE FROM ff.agenda x WHERE x.seq = was.seq;
                DELETE FROM ff.definition x WHERE x.seq = was.seq;
                DELETE FROM ff.result x WHERE x.seq = was.seq;
                DELETE FROM ff.attempt x WHERE x.seq = was.seq;
                DELETE FROM ff.event x WHERE x.seq = was.seq;
                DELETE FROM ff.stream x WHERE x.seq = was.seq;
                DELETE FROM ff.execution x WHERE x.seq = was.seq;
                status := 'deleted';
            ELSE
                r.frames_trim_at_ms := NULL;
                r.stream_due_at_ms := NULL;
                PERFORM ff._store(was, r);
                status := 'frames_deleted';
            END IF;
            PERFORM ff._announce_change(was.id);
        ELSIF was.stream_due_at_ms <= v_now THEN
            dropped := ff._drop_frames(was.seq, v_now, v_left);
            v_left := v_left - dropped.dropped;
            IF NOT dropped.is_done THEN
                status := 'more';
            ELSE
                SELECT min(s.expires_at_ms) INTO r.stream_due_at_ms FROM ff.stream s
                    WHERE s.seq = was.seq AND s.expires_at_ms > v_now;
                PERFORM ff._store(was, r);
                status := CASE WHEN dropped.streams > 0 THEN 'frames_deleted' ELSE 'not_due' END;
            END IF;
            IF dropped.dropped > 0 THEN
                PERFORM ff._announce_change(was.id);
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
