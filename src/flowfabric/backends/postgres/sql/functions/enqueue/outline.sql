-- Tell an application with a transaction of its own what its creates depend on: the partition counts, the time, and the
-- defaults of kinds that workers have published; a kind without any is a row without defaults.
CREATE FUNCTION ff.enqueue_outline(p_namespace text, p_kinds text[])
RETURNS TABLE (flow_partitions integer, now_ms bigint, kind text, defaults bytea)
LANGUAGE sql STABLE AS $$
    SELECT s.flow_partitions, ff.now_ms(), i.kind, k.defaults
    FROM ff.store s
    CROSS JOIN unnest(p_kinds) AS i(kind)
    LEFT JOIN ff.kind_default k ON k.namespace = p_namespace AND k.kind = i.kind
$$;
