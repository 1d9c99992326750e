-- Ring for every route that has hints, and give back the hints whose holders are gone. Answers which routes have some.
-- KEYS: held hints...
-- ARGV:
-- Touches: bells of the routes (informing only)

best_held(tag, held, now, hintss, {})
local reply = ok()
for at, key in ipairs(hintss) do
  local count = redis.call('ZCARD', key)
  if count > 0 then
    reply[#reply + 1] = at
    ring(tag, key, 0, count)
  end
end
return reply
