-- Ring for every route that has hints, and give back the hints whose holders are gone. Answers which routes have some.
-- KEYS: held hints...
-- ARGV:
-- Touches: bells of the routes (informing only)

local indexes, rids = K.hintss, {}
for at, key in ipairs(indexes) do
  rids[at] = string.sub(key, #tag + 3)
end
local dropped, added = {}, {}
add_expired(K.held, now, rids, dropped, added)
put_back(K.held, dropped, indexes, added)
local reply = ok()
for at, key in ipairs(indexes) do
  local count = redis.call('ZCARD', key)
  if count > 0 then
    reply[#reply + 1] = at
    ring(tag, key, 0, count)
  end
end
return reply
