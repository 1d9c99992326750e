-- Ring for every route that has hints, and give back the hints whose holders are gone. Answers which routes have some.
-- KEYS: held hints...
-- ARGV:
-- Touches: bells of the routes (informing only)

local indexes = K.hintss
local index_of = {}
for at, key in ipairs(indexes) do
  index_of[string.sub(key, #tag + 3)] = at
end
local gone = {}
for _, member in ipairs(redis.call('ZRANGE', K.held, '-inf', now, 'BYSCORE', 'LIMIT', 0, 1024)) do
  local rid, partition, score = string.match(member, '^(%S+) (%S+) (%S+)$')
  if index_of[rid] then
    gone[#gone + 1] = member
    redis.call('ZADD', indexes[index_of[rid]], 'LT', score, partition)
  end
end
if #gone > 0 then
  redis.call('ZREM', K.held, unpack(gone))
end
local reply = ok()
for at, key in ipairs(indexes) do
  if redis.call('EXISTS', key) == 1 then
    reply[#reply + 1] = at
    ring(tag, key, 0, redis.call('ZCARD', key))
  end
end
return reply
