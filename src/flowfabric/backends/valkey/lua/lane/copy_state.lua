-- Copy a lane's state into one partition, unless it has a newer one. `@<lane>` keeps the version also while the lane
-- is active, which has no entry of its own.
-- KEYS: lanes
-- ARGV: lane:text state:text version:int
-- Refuses: invalid_input
if not S.LANE_STATES[state] then
  return refuse('invalid_input', 'a lane has no such state', 'state', state)
end
local known = tonumber(redis.call('HGET', lanes, '@' .. lane) or '0') or 0
if version > known then
  redis.call('HSET', lanes, '@' .. lane, string.format('%.0f', version))
  if state == 'active' then
    redis.call('HDEL', lanes, lane)
  else
    redis.call('HSET', lanes, lane, state)
  end
end
return ok()
