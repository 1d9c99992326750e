-- Note that every partition has a version of a lane's state.
-- KEYS: registry
-- ARGV: lane:text version:int
local stored = redis.call('HGET', registry, lane)
if stored then
  local state, created_at_ms, changed_at_ms, latest, copied = cmsgpack.unpack(stored)
  if latest == version and copied ~= version then
    redis.call('HSET', registry, lane, cmsgpack.pack(state, created_at_ms, changed_at_ms, latest, version))
  end
end
return ok()
