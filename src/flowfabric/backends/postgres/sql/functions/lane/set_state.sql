-- Set a lane's state; a lane that does not exist yet is created in that state. It acts on the next claim or create.
-- Answers the state before.
-- Refuses: invalid_input
-- Also touches: tells the catalog and, where work can be claimed again, who waits for it.
CREATE FUNCTION ff.lane_set_state(
    p_lane text, p_state text, OUT code text, OUT message text, OUT details jsonb, OUT value jsonb
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now bigint := ff.now_ms();
    before text;
    route_id integer;
BEGIN
    IF p_state NOT IN (@LANE_STATES@) THEN
        code := 'invalid_input';
        message := 'a lane has no such state';
        details := jsonb_build_object('state', p_state);
        RETURN;
    END IF;
    -- A lane that has routes was active since the first of them.
    INSERT INTO ff.lane (lane, state, created_at_ms, changed_at_ms)
        SELECT p_lane, 'active', coalesce(min(r.created_at_ms), now), coalesce(min(r.created_at_ms), now)
        FROM ff.route r WHERE r.lane = p_lane
        ON CONFLICT (lane) DO NOTHING;
    SELECT l.state INTO before FROM ff.lane l WHERE l.lane = p_lane FOR UPDATE;
    IF before <> p_state THEN
        UPDATE ff.lane l SET state = p_state, changed_at_ms = greatest(now, l.changed_at_ms) WHERE l.lane = p_lane;
        PERFORM ff._announce_catalog();
        IF p_state IN (@LANE_ACCEPTS_CLAIMS@) AND before NOT IN (@LANE_ACCEPTS_CLAIMS@) THEN
            -- Also where nothing waits that can be seen: whoever was woken by work that is committed before this is
            -- finds the lane stopped, and sleeps again.
            FOR route_id IN SELECT r.id FROM ff.route r WHERE r.lane = p_lane LOOP
                PERFORM ff._announce_work(route_id, 1);
            END LOOP;
        END IF;
    END IF;
    value := jsonb_build_array(before);
END
$$;
