-- Append frames to the streams of live attempts: one command per execution, each with its own outcome.
-- Refuses: execution_not_found stream_closed stale_owner_cannot_append frame_sequence_gap stale_version invalid_input summary_too_large
-- Also touches: the execution's stream timer; old frames past their mode's bound go.
-- Of a command's `held` frames, in turn in the arrays of frames, those appended before are skipped. With summary frames
-- among them, `seen` is the last sequence that the caller merged upon and `document` what came out, or `fault` why
-- nothing did. Ids are given while the execution's row is locked, and the stream is read in a statement that begins
-- after the lock was got: so whoever appends next sees the last id, and a transaction that commits later has later ids.

-- What becomes of each command, with what is to be known of its execution (null: there is none) and its stream (`s_*`; an
-- empty one when nothing was ever appended). `known` of its frames were appended before; `skip` frames of other commands
-- come before its own. Guards are in the order in which they refuse.
CREATE FUNCTION ff._judge_appends(
    p_now bigint,
    p_partitions integer[],
    p_ids uuid[],
    p_attempt_indexes integer[],
    p_lease_ids uuid[],
    p_lease_epochs bigint[],
    p_attempt_ids uuid[],
    p_lanes text[],
    p_routes text[],
    p_firsts bigint[],
    p_held integer[],
    p_seen bigint[],
    p_documents bytea[],
    p_faults text[],
    p_fault_messages text[]
) RETURNS TABLE (
    at bigint,
    partition integer,
    id uuid,
    attempt_index integer,
    first bigint,
    held integer,
    document bytea,
    fault_message text,
    skip bigint,
    known bigint,
    refused text,
    seq bigint,
    vector smallint,
    now_ms bigint,
    stream_closed_at_ms bigint,
    stream_due_at_ms bigint,
    durable_most integer,
    s_sequence bigint,
    s_ms bigint,
    s_seq bigint,
    s_count bigint,
    s_version bigint,
    durable_kept bigint,
    summary_kept bigint,
    best_effort_kept bigint,
    append_rate double precision,
    rate_at_ms bigint,
    best_effort_cap bigint,
    expires_at_ms bigint,
    first_applied_at_ms bigint,
    last_updated_at_ms bigint
)
LANGUAGE sql STABLE AS $$
    SELECT
        c.at, c.partition, c.id, c.attempt_index, c.first, c.held, c.document, c.fault_message, c.skip,
        k.known,
        CASE
            WHEN e.seq IS NULL THEN 'execution_not_found'
            WHEN ff.phase(e.vector) <> 'active' THEN 'stream_closed'
            WHEN e.is_owner IS NOT TRUE THEN 'stale_owner_cannot_append'
            WHEN e.stream_closed_at_ms IS NOT NULL THEN 'stream_closed'
            WHEN c.first > coalesce(s.last_sequence, 0) + 1 THEN 'frame_sequence_gap'
            WHEN k.known = c.held THEN NULL
            WHEN c.seen <> coalesce(s.last_sequence, 0) THEN 'stale_version'
            ELSE c.fault
        END,
        e.seq, e.vector, e.now_ms, e.stream_closed_at_ms, e.stream_due_at_ms, e.durable_most,
        coalesce(s.last_sequence, 0), coalesce(s.last_ms, 0), coalesce(s.last_seq, 0), coalesce(s.frame_count, 0),
        coalesce(s.version, 0), coalesce(s.durable_kept, 0), coalesce(s.summary_kept, 0),
        coalesce(s.best_effort_kept, 0), coalesce(s.append_rate, 0), s.rate_at_ms,
        coalesce(s.best_effort_cap, @BEST_EFFORT_FRAMES_MIN@), s.expires_at_ms, coalesce(s.first_applied_at_ms, 0),
        coalesce(s.last_updated_at_ms, 0)
    FROM (
        SELECT *, sum(held) OVER (ORDER BY at) - held AS skip
        FROM unnest(
            p_partitions, p_ids, p_attempt_indexes, p_lease_ids, p_lease_epochs, p_attempt_ids, p_lanes, p_routes,
            p_firsts, p_held, p_seen, p_documents, p_faults, p_fault_messages
        ) WITH ORDINALITY AS given (
            partition, id, attempt_index, lease_id, lease_epoch, attempt_id, lane, route, first, held, seen, document,
            fault, fault_message, at
        )
    ) AS c
    LEFT JOIN LATERAL (
        SELECT
            x.seq, x.vector, x.stream_closed_at_ms, x.stream_due_at_ms,
            greatest(p_now, x.last_mutation_at_ms) AS now_ms,
            coalesce(x.frames_maxlen, @STREAM_MAXLEN_DEFAULT@) AS durable_most,
            x.vector = @LEASED@
                AND x.expires_at_ms > greatest(p_now, x.last_mutation_at_ms)
                AND x.attempt_index = c.attempt_index
                AND x.attempt_id = c.attempt_id
                AND x.lease_id = c.lease_id
                AND x.lease_epoch = c.lease_epoch
                AND (c.lane IS NULL OR x.lane = c.lane)
                AND (c.route IS NULL OR x.route = c.route) AS is_owner
        FROM ff.execution AS x
        WHERE x.id = c.id AND x.partition = c.partition
        LIMIT 1
    ) AS e ON true
    LEFT JOIN LATERAL (
        SELECT * FROM ff.stream AS x WHERE x.seq = e.seq AND x.attempt_index = c.attempt_index LIMIT 1
    ) AS s ON true
    CROSS JOIN LATERAL (
        SELECT least(greatest(coalesce(s.last_sequence, 0) + 1 - c.first, 0), c.held) AS known
    ) AS k
$$;

CREATE FUNCTION ff.stream_append(
    p_partitions integer[],
    p_ids uuid[],
    p_attempt_indexes integer[],
    p_lease_ids uuid[],
    p_lease_epochs bigint[],
    p_attempt_ids uuid[],
    p_lanes text[],
    p_routes text[],
    p_firsts bigint[],
    p_held integer[],
    p_seen bigint[],
    p_documents bytea[],
    p_faults text[],
    p_fault_messages text[],
    p_modes text[],
    p_ttls bigint[],
    p_frame_types text[],
    p_content_types text[],
    p_correlation_ids text[],
    p_summary_versions bigint[],
    p_payloads bytea[]
) RETURNS TABLE (
    at integer,
    code text,
    message text,
    details jsonb,
    last_ms bigint,
    last_seq bigint,
    last_sequence bigint,
    frame_count bigint,
    duplicates integer,
    version bigint
)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode TO force_generic_plan
SET enable_seqscan TO off
AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := ff.now_ms();
    c record;
BEGIN
    PERFORM FROM ff.execution WHERE id = ANY (p_ids) ORDER BY id FOR UPDATE;
    FOR c IN
        WITH judged AS MATERIALIZED (
            SELECT * FROM ff._judge_appends(
                v_now, p_partitions, p_ids, p_attempt_indexes, p_lease_ids, p_lease_epochs, p_attempt_ids, p_lanes,
                p_routes, p_firsts, p_held, p_seen, p_documents, p_faults, p_fault_messages
            )
        ), wanted AS (
            SELECT
                at, seq, attempt_index, skip, known,
                generate_series(skip + known + 1, least(skip + held, cardinality(p_modes))) AS n,
                greatest(now_ms, s_ms) AS ms,
                CASE WHEN now_ms <= s_ms THEN s_seq + 1 ELSE 0 END AS first_seq,
                first
            FROM judged
            WHERE refused IS NULL
        ), fresh AS MATERIALIZED (
            SELECT
                wanted.at, wanted.seq, wanted.attempt_index, wanted.n, wanted.ms,
                wanted.first_seq + wanted.n - wanted.skip - wanted.known - 1 AS frame_seq,
                wanted.first + wanted.n - wanted.skip - 1 AS sequence,
                frame.mode, frame.ttl_ms, frame.frame_type, frame.content_type, frame.correlation_id,
                frame.summary_version, frame.payload
            FROM wanted
            JOIN unnest(
                p_modes, p_ttls, p_frame_types, p_content_types, p_correlation_ids, p_summary_versions, p_payloads
            ) WITH ORDINALITY AS frame (
                mode, ttl_ms, frame_type, content_type, correlation_id, summary_version, payload, n
            ) ON frame.n = wanted.n
        ), inserted AS (
            INSERT INTO ff.frame (
                seq, attempt_index, ms, frame_seq, sequence, ttl_ms, summary_version, mode, frame_type, content_type,
                correlation_id, payload
            )
            SELECT
                seq, attempt_index, ms, frame_seq, sequence, ttl_ms, summary_version, mode, frame_type, content_type,
                correlation_id, payload
            FROM fresh
        ), added AS (
            SELECT
                at,
                max(ms) AS ms,
                max(frame_seq) AS frame_seq,
                max(sequence) AS sequence,
                count(*) AS frames,
                count(*) FILTER (WHERE mode = 'durable') AS durable,
                count(*) FILTER (WHERE mode = 'summary') AS summary,
                count(*) FILTER (WHERE mode = 'best_effort') AS lossy,
                (array_agg(ttl_ms ORDER BY n DESC) FILTER (WHERE mode = 'best_effort'))[1] AS ttl_ms
            FROM fresh
            GROUP BY at
        ), rated AS (
            -- The smoothed rate of lossy frames says how many of them their ttl justifies keeping.
            SELECT
                judged.*,
                added.ms, added.frame_seq, added.sequence, added.frames, added.summary, added.lossy, added.ttl_ms,
                judged.durable_kept + added.durable AS durable,
                judged.summary_kept + added.summary AS summaries,
                judged.best_effort_kept + added.lossy AS lossies,
                CASE
                    WHEN added.lossy = 0 THEN judged.append_rate
                    WHEN judged.rate_at_ms IS NULL
                        THEN @BEST_EFFORT_FRAMES_MIN@ / (added.ttl_ms::double precision / 1000 * 2)
                    ELSE @BEST_EFFORT_RATE_ALPHA@::double precision
                        * (added.lossy / (greatest(judged.now_ms - judged.rate_at_ms, 1)::double precision / 1000))
                        + (1 - @BEST_EFFORT_RATE_ALPHA@::double precision) * judged.append_rate
                END AS rate
            FROM judged
            JOIN added ON added.at = judged.at
        ), after AS MATERIALIZED (
            SELECT
                *,
                CASE
                    WHEN durable + summaries > 0 THEN NULL
                    WHEN lossy > 0 THEN now_ms + 2 * ttl_ms
                    ELSE expires_at_ms
                END AS expires,
                CASE
                    WHEN lossy = 0 THEN best_effort_cap
                    ELSE greatest(
                        @BEST_EFFORT_FRAMES_MIN@, least(@BEST_EFFORT_FRAMES_MAX@, ceil(rate * ttl_ms / 1000 * 2))
                    )::bigint
                END AS lossy_most
            FROM rated
        ), written AS (
            INSERT INTO ff.stream AS stream (
                seq, attempt_index, frame_count, last_sequence, last_ms, last_seq, durable_kept, summary_kept,
                best_effort_kept, append_rate, rate_at_ms, best_effort_cap, expires_at_ms, version,
                first_applied_at_ms, last_updated_at_ms, document
            )
            SELECT
                seq, attempt_index, s_count + frames, sequence, ms, frame_seq,
                least(durable, durable_most), least(summaries, @SUMMARY_FRAMES_KEPT@), least(lossies, lossy_most),
                rate, CASE WHEN lossy > 0 THEN now_ms ELSE rate_at_ms END, lossy_most, expires,
                s_version + summary,
                CASE WHEN summary > 0 AND s_version = 0 THEN now_ms ELSE first_applied_at_ms END,
                CASE WHEN summary > 0 THEN now_ms ELSE last_updated_at_ms END,
                CASE WHEN summary > 0 THEN document END
            FROM after
            ON CONFLICT (seq, attempt_index) DO UPDATE SET
                frame_count = excluded.frame_count,
                last_sequence = excluded.last_sequence,
                last_ms = excluded.last_ms,
                last_seq = excluded.last_seq,
                durable_kept = excluded.durable_kept,
                summary_kept = excluded.summary_kept,
                best_effort_kept = excluded.best_effort_kept,
                append_rate = excluded.append_rate,
                rate_at_ms = excluded.rate_at_ms,
                best_effort_cap = excluded.best_effort_cap,
                expires_at_ms = excluded.expires_at_ms,
                version = excluded.version,
                first_applied_at_ms = excluded.first_applied_at_ms,
                last_updated_at_ms = excluded.last_updated_at_ms,
                document = coalesce(excluded.document, stream.document)
        )
        SELECT
            judged.at::integer AS position,
            judged.partition,
            judged.id,
            judged.seq,
            judged.attempt_index,
            judged.refused,
            CASE judged.refused
                WHEN 'frame_sequence_gap' THEN
                    format('the next frame''s sequence is %s, not %s', judged.s_sequence + 1, judged.first)
                WHEN 'invalid_input' THEN judged.fault_message
                WHEN 'summary_too_large' THEN judged.fault_message
            END AS said,
            CASE
                WHEN judged.refused = 'execution_not_found' THEN ff._absent(judged.partition, judged.id)
                WHEN judged.refused = 'stream_closed' AND ff.phase(judged.vector) <> 'active'
                    THEN jsonb_build_object('public_state', ff.public_state(judged.vector))
                WHEN judged.refused = 'stream_closed'
                    THEN jsonb_build_object('closed_at_ms', judged.stream_closed_at_ms)
                WHEN judged.refused = 'frame_sequence_gap'
                    THEN jsonb_build_object('expected', judged.s_sequence + 1)
                WHEN judged.refused = 'summary_too_large'
                    THEN jsonb_build_object('limit_bytes', @SUMMARY_BYTES_MAX@)
                WHEN judged.refused = 'invalid_input' THEN jsonb_build_object('field', 'payload')
            END AS why,
            coalesce(after.ms, judged.s_ms) AS ms,
            coalesce(after.frame_seq, judged.s_seq) AS frame_seq,
            coalesce(after.sequence, judged.s_sequence) AS sequence,
            judged.s_count + coalesce(after.frames, 0) AS frames,
            judged.known::integer AS known,
            judged.s_version + coalesce(after.summary, 0) AS summary_version,
            after.at IS NOT NULL AS is_written,
            greatest(after.durable - after.durable_most, 0) AS durable_cut,
            greatest(after.summaries - @SUMMARY_FRAMES_KEPT@, 0) AS summary_cut,
            greatest(after.lossies - after.lossy_most, 0) AS lossy_cut,
            CASE WHEN after.expires < coalesce(after.stream_due_at_ms, after.expires + 1) THEN after.expires END AS due
        FROM judged
        LEFT JOIN after ON after.at = judged.at
    LOOP
        IF c.is_written THEN
            IF c.durable_cut + c.summary_cut + c.lossy_cut > 0 THEN
                PERFORM ff._cut_frames(c.seq, c.attempt_index, c.durable_cut, c.summary_cut, c.lossy_cut);
            END IF;
            IF c.due IS NOT NULL THEN
                PERFORM ff._set_stream_due(c.partition, c.id, c.due);
            END IF;
            PERFORM ff._announce_change(c.id);
        END IF;
        at := c.position;
        code := c.refused;
        message := c.said;
        details := c.why;
        last_ms := c.ms;
        last_seq := c.frame_seq;
        last_sequence := c.sequence;
        frame_count := c.frames;
        duplicates := c.known;
        version := c.summary_version;
        RETURN NEXT;
    END LOOP;
END
$$;
