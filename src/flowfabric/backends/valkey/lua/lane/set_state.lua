-- Set a lane's state in the global record, made when it is new. Whoever calls this then copies the state to every
-- partition (copy_state) and says so (copied). `version` is given when a record that is behind takes over what a
-- partition knows: then only a newer version acts.
-- KEYS: meta registry
-- ARGV: lane:text state:text version:int?
-- Refuses: invalid_input
-- Touches: tells the catalog channel
if not S.LANE_STATES[state] then
  return refuse('invalid_input', 'a lane has no such state', 'state', state)
end
local stored = redis.call('HGET', registry, lane)
local before, created_at_ms, changed_at_ms, latest, copied = 'active', now, now, 0, 0
if stored then
  before, created_at_ms, changed_at_ms, latest, copied = cmsgpack.unpack(stored)
end
local acts = state ~= before
if version then
  acts = version > latest
end
if acts then
  -- The clock keeps versions growing even after a failover that lost the latest ones.
  latest = version or math.max(now, latest + 1)
  if state ~= before then
    changed_at_ms = now
  end
end
if acts or not stored then
  stored = cmsgpack.pack(state, created_at_ms, changed_at_ms, latest, copied)
  local at = count_change(meta)
  redis.call('HSET', registry, lane, stored)
  tell_change(meta, tag, at, 'lane', lane, cmsgpack.unpack(stored))
end
return ok(before, stored)
