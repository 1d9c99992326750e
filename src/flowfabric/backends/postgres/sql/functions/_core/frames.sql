-- Frames that go: the oldest of a mode past its bound, and all frames of streams that are over. Whoever calls holds
-- the lock of the execution's row. What must stay true: kept counts are those of the rows, and the newest durable or
-- summary frame that went is noted in its stream, so that readers are told.

-- Remove the oldest frames of each mode of one stream, whose counts say so already. Where a mode's frames begin is kept
-- in `cut_ms` (durable, summary, best-effort), so that looking for them passes nothing that went or stays.
CREATE FUNCTION ff._cut_frames(
    p_seq bigint, p_attempt_index integer, p_durable bigint, p_summary bigint, p_best_effort bigint
) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_modes constant text[] := ARRAY['durable', 'summary', 'best_effort'];
    v_counts constant bigint[] := ARRAY[p_durable, p_summary, p_best_effort];
    v_cut bigint[];
    v_ms bigint;
    v_seq bigint;
    v_trimmed_ms bigint := 0;
    v_trimmed_seq bigint := 0;
BEGIN
    SELECT cut_ms INTO v_cut FROM ff.stream WHERE seq = p_seq AND attempt_index = p_attempt_index;
    FOR i IN 1..3 LOOP
        CONTINUE WHEN v_counts[i] = 0;
        WITH gone AS (
            DELETE FROM ff.frame WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM ff.frame
                WHERE seq = p_seq AND attempt_index = p_attempt_index AND ms >= v_cut[i] AND mode = v_modes[i]
                ORDER BY ms, frame_seq
                LIMIT v_counts[i]
            ))
            RETURNING ms, frame_seq
        )
        SELECT ms, frame_seq INTO v_ms, v_seq FROM gone ORDER BY ms DESC, frame_seq DESC LIMIT 1;
        v_cut[i] := v_ms;
        IF i < 3 AND (v_ms, v_seq) > (v_trimmed_ms, v_trimmed_seq) THEN
            v_trimmed_ms := v_ms;
            v_trimmed_seq := v_seq;
        END IF;
    END LOOP;
    UPDATE ff.stream SET
        cut_ms = v_cut,
        trimmed_ms = CASE WHEN (v_trimmed_ms, v_trimmed_seq) > (trimmed_ms, trimmed_seq)
            THEN v_trimmed_ms ELSE trimmed_ms END,
        trimmed_seq = CASE WHEN (v_trimmed_ms, v_trimmed_seq) > (trimmed_ms, trimmed_seq)
            THEN v_trimmed_seq ELSE trimmed_seq END
    WHERE seq = p_seq AND attempt_index = p_attempt_index;
END
$$;

-- Have the execution's stream timer ring at an instant.
CREATE FUNCTION ff._set_stream_due(p_partition integer, p_id uuid, p_at_ms bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    was ff.execution := ff._open(p_partition, p_id);
    r ff.execution := was;
BEGIN
    r.stream_due_at_ms := p_at_ms;
    PERFORM ff._store(was, r);
END
$$;

-- Remove at most `p_most` frames of an execution, oldest first: of all its streams, or with `p_expired_by` of those
-- (lossy ones) that expire no later than that. `dropped` says how many went, `streams` how many streams are over
-- (counted by the call that removes the last of their frames), `is_done` that none are left of what was to go.
CREATE FUNCTION ff._drop_frames(
    p_seq bigint,
    p_expired_by bigint,
    p_most integer,
    OUT dropped integer,
    OUT streams integer,
    OUT is_done boolean
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan TO off
AS $$
#variable_conflict use_column
DECLARE
    s record;
    g record;
BEGIN
    dropped := 0;
    streams := 0;
    is_done := true;
    FOR s IN
        SELECT attempt_index
        FROM ff.stream
        WHERE seq = p_seq
            AND durable_kept + summary_kept + best_effort_kept > 0
            AND (p_expired_by IS NULL OR expires_at_ms <= p_expired_by)
        ORDER BY attempt_index
    LOOP
        IF dropped >= p_most THEN
            is_done := false;
            RETURN;
        END IF;
        WITH gone AS (
            DELETE FROM ff.frame WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM ff.frame
                WHERE seq = p_seq AND attempt_index = s.attempt_index
                ORDER BY ms, frame_seq
                LIMIT p_most - dropped
            ))
            RETURNING ms, frame_seq, mode
        )
        SELECT
            count(*) AS frames,
            count(*) FILTER (WHERE mode = 'durable') AS durable,
            count(*) FILTER (WHERE mode = 'summary') AS summary,
            count(*) FILTER (WHERE mode = 'best_effort') AS lossy,
            coalesce(max(ARRAY[ms, frame_seq]) FILTER (WHERE mode <> 'best_effort'), ARRAY[0, 0]) AS lasting
        INTO g
        FROM gone;
        dropped := dropped + g.frames;
        UPDATE ff.stream SET
            durable_kept = durable_kept - g.durable,
            summary_kept = summary_kept - g.summary,
            best_effort_kept = best_effort_kept - g.lossy,
            trimmed_ms = (greatest(ARRAY[trimmed_ms, trimmed_seq], g.lasting))[1],
            trimmed_seq = (greatest(ARRAY[trimmed_ms, trimmed_seq], g.lasting))[2]
        WHERE seq = p_seq AND attempt_index = s.attempt_index;
        -- Fewer than asked for were all there were, whatever the counts said.
        UPDATE ff.stream SET
            durable_kept = 0,
            summary_kept = 0,
            best_effort_kept = 0,
            expires_at_ms = NULL,
            trimmed_ms = CASE WHEN trimmed_ms > 0 THEN last_ms ELSE 0 END,
            trimmed_seq = CASE WHEN trimmed_ms > 0 THEN last_seq ELSE 0 END
        WHERE seq = p_seq AND attempt_index = s.attempt_index
            AND (durable_kept + summary_kept + best_effort_kept <= 0 OR dropped < p_most);
        IF FOUND THEN
            streams := streams + 1;
        ELSE
            is_done := false;
        END IF;
    END LOOP;
END
$$;
