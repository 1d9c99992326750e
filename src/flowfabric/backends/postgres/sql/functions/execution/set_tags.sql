-- Add or overwrite tags, in any state; `p_tags` is an object of texts. Answers all tags.
-- Refuses: invalid_input execution_not_found
-- Also touches: nothing.
CREATE FUNCTION ff.execution_set_tags(
    p_partition integer, p_id uuid, p_tags jsonb,
    OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    was ff.execution;
    r ff.execution;
BEGIN
    IF jsonb_typeof(p_tags) IS DISTINCT FROM 'object' OR p_tags = '{}' THEN
        code := 'invalid_input';
        message := 'tags are names and values';
        details := '{"field": "tags"}';
        RETURN;
    END IF;
    was := ff._open(p_partition, p_id);
    IF was.id IS NULL THEN
        code := 'execution_not_found';
        details := ff._absent(p_partition, p_id);
        RETURN;
    END IF;
    r := was;
    r.tags := coalesce(r.tags, '{}') || p_tags;
    IF (SELECT count(*) FROM jsonb_object_keys(r.tags)) > @TAGS_MAX@ THEN
        code := 'invalid_input';
        message := 'an execution has at most @TAGS_MAX@ tags';
        details := '{"field": "tags"}';
        RETURN;
    END IF;
    r.last_mutation_at_ms := greatest(ff.now_ms(), r.last_mutation_at_ms);
    PERFORM ff._store(was, r);
    value := jsonb_build_array(r.tags);
END
$$;
