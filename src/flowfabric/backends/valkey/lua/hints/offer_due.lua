-- Make known that something is due in a partition at an instant, in pairs, unless an earlier instant is known. Answers
-- the time and, for each pair, the instant that is known now: until then nobody needs to say more.
-- KEYS: due_hints
-- ARGV: offers:rest
-- Refuses: invalid_input
-- Touches: tells the due channel

if #offers % 2 ~= 0 or #offers > 4000 then
  return refuse('invalid_input', 'malformed call of a function: offers', 'field', 'offers')
end
for _, value in ipairs(offers) do
  if not is_integer(value) then
    return refuse('invalid_input', 'malformed call of a function: offers', 'field', 'offers')
  end
end
local reply = ok(now)
if #offers == 0 then
  return reply
end
local first = tonumber(redis.call('ZRANGE', K.due_hints, 0, 0, 'WITHSCORES')[2] or 'inf')
local partitions, scores, earliest = {}, {}, math.huge
for at = 1, #offers, 2 do
  partitions[#partitions + 1] = offers[at]
  scores[at], scores[at + 1] = offers[at + 1], offers[at]
  earliest = math.min(earliest, tonumber(offers[at + 1]))
end
redis.call('ZADD', K.due_hints, 'LT', unpack(scores))
for at, score in ipairs(redis.call('ZMSCORE', K.due_hints, unpack(partitions))) do
  reply[at + 4] = tonumber(score)
end
if earliest < first then
  redis.pcall('SPUBLISH', tag .. 'ch:due', string.format('%.0f', earliest))
end
return reply
