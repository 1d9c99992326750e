-- Register a worker instance, or refresh it, and publish the defaults of its kinds. `p_details` is JSON of what it can
-- run, `p_defaults` JSON of KindDefaults for each of `p_kinds`. Answers whether it is new and when its heartbeat lapses.
-- Refuses: instance_reassigned
-- Also touches: tells the catalog and who waits for what is due.
CREATE FUNCTION ff.worker_register(
    p_namespace text, p_instance text, p_worker_id text, p_liveness_ttl_ms bigint, p_details bytea, p_kinds text[],
    p_defaults bytea[], OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now bigint := ff.now_ms();
    status text := 'registered';
    registered_at bigint := now;
    known ff.worker;
    changed integer;
BEGIN
    -- Two registrations of one new instance: the second one waits for the first, and then finds it.
    LOOP
        INSERT INTO ff.worker (namespace, instance, worker_id, liveness_ttl_ms, registered_at_ms,
                last_heartbeat_at_ms, expires_at_ms, due_at_ms, details)
            VALUES (p_namespace, p_instance, p_worker_id, p_liveness_ttl_ms, now, now, now + p_liveness_ttl_ms,
                now + p_liveness_ttl_ms, p_details)
            ON CONFLICT (namespace, instance) DO NOTHING;
        EXIT WHEN FOUND;
        SELECT * INTO known FROM ff.worker w WHERE w.namespace = p_namespace AND w.instance = p_instance FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF known.lapsed_at_ms IS NULL AND known.expires_at_ms > now THEN
            IF known.worker_id <> p_worker_id THEN
                code := 'instance_reassigned';
                message := 'instance ' || p_instance || ' is registered by worker ' || known.worker_id
                    || ': every process needs its own instance name';
                RETURN;
            END IF;
            status := 'refreshed';
            registered_at := known.registered_at_ms;
        END IF;
        UPDATE ff.worker w SET worker_id = p_worker_id, liveness_ttl_ms = p_liveness_ttl_ms,
            registered_at_ms = registered_at, last_heartbeat_at_ms = now, expires_at_ms = now + p_liveness_ttl_ms,
            lapsed_at_ms = NULL, due_at_ms = now + p_liveness_ttl_ms, details = p_details
            WHERE w.namespace = p_namespace AND w.instance = p_instance;
        EXIT;
    END LOOP;
    PERFORM ff._announce_due(now + p_liveness_ttl_ms);
    -- Two workers with the same kinds take them in the same order.
    INSERT INTO ff.kind_default AS k (namespace, kind, defaults)
        SELECT p_namespace, d.kind, d.defaults FROM (
            SELECT DISTINCT ON (i.kind COLLATE "C") i.kind, i.defaults
            FROM unnest(p_kinds, p_defaults) WITH ORDINALITY AS i(kind, defaults, at)
            ORDER BY i.kind COLLATE "C", i.at DESC
        ) d
        ON CONFLICT (namespace, kind) DO UPDATE SET defaults = excluded.defaults
        WHERE k.defaults <> excluded.defaults;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed > 0 THEN
        PERFORM ff._announce_catalog();
    END IF;
    value := jsonb_build_array(status, now + p_liveness_ttl_ms);
END
$$;
