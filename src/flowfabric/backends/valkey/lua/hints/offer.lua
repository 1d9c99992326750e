-- Make known that indexes have new heads, and ring for them. `offers` have four values each: which of the keys,
-- partition, score, and how many to wake: 0 when the caller wakes somebody itself.
-- KEYS: held hints...
-- ARGV: offers:rest
-- Refuses: invalid_input
-- Touches: bells of the routes (informing only)

local indexes = K.hintss
if #offers % 4 ~= 0 then
  return refuse('invalid_input', 'malformed call of a function: offers', 'field', 'offers')
end
for at = 1, #offers, 4 do
  if not indexes[tonumber(offers[at])] or not hint_partition(offers[at + 1]) or not hint_score(offers[at + 2])
    or not is_integer(offers[at + 3]) then
    return refuse('invalid_input', 'malformed call of a function: offers', 'field', 'offers')
  end
end
local scores, wakes = {}, {}
for at = 1, #offers, 4 do
  local index = tonumber(offers[at])
  local list = scores[index] or {}
  scores[index] = list
  list[#list + 1] = tonumber(offers[at + 2])
  list[#list + 1] = tonumber(offers[at + 1])
  wakes[index] = (wakes[index] or 0) + tonumber(offers[at + 3])
end
for index, list in pairs(scores) do
  for first = 1, #list, 1000 do
    redis.call('ZADD', indexes[index], 'LT', unpack(list, first, math.min(first + 999, #list)))
  end
end
for index, count in pairs(wakes) do
  if count > 0 then
    ring(tag, indexes[index], count, 0)
  end
end
return ok()
