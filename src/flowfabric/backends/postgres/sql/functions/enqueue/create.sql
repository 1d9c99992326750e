-- Create executions in an application's own transaction, as `execution_create` does: they exist exactly if it commits.
-- Nobody knows how long that takes, so work is announced without holding what sleepers would wait for.
-- Refuses: as execution_create
CREATE FUNCTION ff.enqueue_create(
    p_ids text[], p_partitions integer[], p_shapes text[], p_priorities integer[], p_digests text[],
    p_documents bytea[], p_input_types text[], p_inputs bytea[], p_tags text[], p_keys text[], p_delays bigint[],
    p_deadlines bigint[]
) RETURNS TABLE (
    at integer, code text, message text, details text, status text, execution_id text, public_state text,
    created_at_ms bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    -- Not a setting of the function: who makes it would need a right to settings nobody has declared.
    PERFORM set_config('flowfabric.announce', 'always', true);
    RETURN QUERY
        SELECT c.at, c.code, c.message, c.details::text, c.status, c.execution_id, c.public_state, c.created_at_ms
        FROM ff.execution_create(p_ids::uuid[], p_partitions, p_shapes, p_priorities, p_digests, p_documents,
            p_input_types, p_inputs, p_tags, p_keys, p_delays, p_deadlines) AS c
        ORDER BY c.at;
    PERFORM set_config('flowfabric.announce', '', true);
END
$$;
