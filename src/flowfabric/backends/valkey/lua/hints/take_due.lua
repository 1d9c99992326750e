-- Take partitions in which something is due, after giving others back. What is taken is the caller's until it gives it
-- back or two seconds are over. `given` are pairs of partition and: its next due instant, empty when there is none, or
-- `keep` when the caller still has it. Answers the time, when anything is due next, how many values about workers
-- follow (member and instant in turn), these, and the partitions.
-- KEYS: due_hints due_held worker_due
-- ARGV: most:int workers:int given:rest
-- Refuses: invalid_input

if #given % 2 ~= 0 or most > 1000 or workers > 10000 then
  return refuse('invalid_input', 'malformed call of a function: given', 'field', 'given')
end
for at = 1, #given, 2 do
  local value = given[at + 1]
  if not is_integer(given[at]) or (value ~= '' and value ~= 'keep' and not is_integer(value)) then
    return refuse('invalid_input', 'malformed call of a function: given', 'field', 'given')
  end
end
for at = 1, #given, 2 do
  local partition, value = given[at], given[at + 1]
  if value == 'keep' then
    redis.call('ZADD', K.due_held, now + HOLD_MS, partition)
  else
    redis.call('ZREM', K.due_held, partition)
    if value ~= '' then
      redis.call('ZADD', K.due_hints, 'LT', value, partition)
    end
  end
end
local taken = redis.call('ZRANGE', K.due_hints, '-inf', now, 'BYSCORE', 'LIMIT', 0, most)
if #taken > 0 then
  redis.call('ZREM', K.due_hints, unpack(taken))
end
local is_taken = {}
for _, partition in ipairs(taken) do
  is_taken[partition] = true
end
for _, partition in ipairs(redis.call('ZRANGE', K.due_held, '-inf', now, 'BYSCORE', 'LIMIT', 0, most)) do
  if not is_taken[partition] then
    taken[#taken + 1] = partition
  end
end
for _, partition in ipairs(taken) do
  redis.call('ZADD', K.due_held, now + HOLD_MS, partition)
end
local next_due
local function offer(score)
  local at = tonumber(score or 'inf')
  if at < (next_due or math.huge) then
    next_due = at
  end
end
offer(redis.call('ZRANGE', K.due_hints, 0, 0, 'WITHSCORES')[2])
offer(redis.call('ZRANGE', K.due_held, 0, 0, 'WITHSCORES')[2])
local lapsed = redis.call('ZRANGE', K.worker_due, '-inf', now, 'BYSCORE', 'LIMIT', 0, workers, 'WITHSCORES')
offer(redis.call('ZRANGE', K.worker_due, '(' .. string.format('%.0f', now), '+inf', 'BYSCORE', 'LIMIT', 0, 1,
  'WITHSCORES')[2])
local reply = ok(now, next_due or false, #lapsed)
for _, value in ipairs(lapsed) do
  reply[#reply + 1] = value
end
for _, partition in ipairs(taken) do
  reply[#reply + 1] = partition
end
return reply
