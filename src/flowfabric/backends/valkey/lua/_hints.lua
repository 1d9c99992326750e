-- Hints: best heads of eligible indexes, and earliest timers, by partition. A hint that was taken has a member
-- `<route> <partition> <score> <until>` in the holds, with its score there: so what others hold and is better is read
-- without the rest. A first member of score -inf is an instant up to which no hold runs out.

local HOLD_MS = 2000
local HOLDS_SEEN_MAX = 1024
local SEEN_AT_ONCE = 8
local PARTITIONS_MAX = 65536

-- Scores as hints have them, and partitions, of texts; false when they are none. They go to the store as numbers, which
-- it takes whatever they are.
local function hint_score(text)
  local value = tonumber(text)
  return value and value > -1e17 and value < 1e17 and value
end

local function hint_partition(text)
  local value = is_integer(text)
  return value and value < PARTITIONS_MAX and value
end

-- Put `count` tokens on a route's bell, and more if there are not `least` of them then: each wakes one of those who wait
-- for its work. There are never fewer tokens and woken waiters than hints; a waiter that was woken for one route and
-- takes from another gives its token back. Tokens only inform, so nothing here fails a function that has written.
local TOKENS_MAX = 1024
local function ring(tag, hints, count, least)
  local bell = tag .. 'bell:' .. string.sub(hints, #tag + 3)
  local there = redis.pcall('LLEN', bell)
  local missing = type(there) == 'number' and math.min(math.max(count, least - there), TOKENS_MAX - there) or 0
  if missing == 1 then
    redis.pcall('RPUSH', bell, '1')
  elseif missing > 1 then
    local tokens = {}
    for at = 1, missing do
      tokens[at] = '1'
    end
    redis.pcall('RPUSH', bell, unpack(tokens))
  end
end

-- The order of hints { which key, partition, score as text, score }.
local function is_better(one, other)
  if one[4] ~= other[4] then
    return one[4] < other[4]
  end
  return one[1] * PARTITIONS_MAX + tonumber(one[2]) < other[1] * PARTITIONS_MAX + tonumber(other[2])
end

-- Which of the first `count` routes a hold is for, by route.
local function positions(tag, keys, count)
  local at_of = {}
  for at = 1, count do
    at_of[string.sub(keys[at], #tag + 3)] = at
  end
  return at_of
end

-- Put hints back, by key: lists of score and partition in turn; and drop holds.
local function put_back(held, dropped, keys, added)
  for first = 1, #dropped, 1000 do
    redis.call('ZREM', held, unpack(dropped, first, math.min(first + 999, #dropped)))
  end
  for index, scores in pairs(added) do
    for first = 1, #scores, 1000 do
      redis.call('ZADD', keys[index], 'LT', unpack(scores, first, math.min(first + 999, #scores)))
    end
  end
end

-- Put back the holds of these keys that ran out, because their holder is gone; they are added to `added`, too.
local function put_back_expired(tag, held, now, keys, added)
  local members = redis.call('ZRANGE', held, 0, -1)
  local at_of, earliest, expired, dropped, left = positions(tag, keys, #keys), now + HOLD_MS, {}, {}, 0
  for _, member in ipairs(members) do
    local rid, partition, score, held_until = string.match(member, '^(%S+) (%S+) (%S+) (%S+)$')
    local index = at_of[rid]
    if index and tonumber(held_until) <= now then
      for _, lists in ipairs({ expired, added }) do
        local scores = lists[index] or {}
        lists[index] = scores
        scores[#scores + 1] = score
        scores[#scores + 1] = partition
      end
      dropped[#dropped + 1] = member
    elseif rid then
      earliest = math.min(earliest, tonumber(held_until))
      left = left + 1
    end
  end
  local mark, noted = members[1], string.format('%d', earliest)
  if mark and (left == 0 or mark ~= noted) then
    if not string.find(mark, ' ', 1, true) then
      dropped[#dropped + 1] = mark
    end
    if left > 0 then
      redis.call('ZADD', held, '-inf', noted)
    end
  end
  put_back(held, dropped, keys, expired)
end

-- Put back what ran out, if anything did. Answers the score of the best hold, or less when that is not known.
local function best_held(tag, held, now, keys, added)
  local best = redis.call('ZRANGE', held, 0, 1, 'WITHSCORES')
  if not best[1] then
    return math.huge
  end
  if best[2] == '-inf' then
    local expires_at = tonumber(best[1])
    if now < expires_at and expires_at <= now + HOLD_MS then
      return tonumber(best[4] or 'inf')
    end
  end
  put_back_expired(tag, held, now, keys, added)
  return -math.huge
end

-- The best hints of the first `count` keys, `most` and the next best at least; and how many of each key were seen. A
-- single key needs no order, so its scores remain texts.
local function best_hints(keys, count, most)
  local found, seen = {}, {}
  local function look(index, first, last)
    local entries = redis.call('ZRANGE', keys[index], first, last, 'WITHSCORES')
    for at = 1, #entries, 2 do
      found[#found + 1] = { index, entries[at], entries[at + 1], count > 1 and tonumber(entries[at + 1]) }
    end
    seen[index] = (seen[index] or 0) + #entries / 2
  end
  if count == 1 or (count - 1) * most <= SEEN_AT_ONCE then
    for index = 1, count do
      look(index, 0, most)
    end
  else
    -- First the best of each key, then more of those that can have more.
    for index = 1, count do
      look(index, 0, 0)
    end
    table.sort(found, is_better)
    for at = 1, math.min(most, #found) do
      look(found[at][1], 1, most)
    end
  end
  if count > 1 then
    table.sort(found, is_better)
  end
  return found, seen
end

-- Of the first `count` routes the hints that others hold, best first, among the `most` best holds that are better than
-- `bound`.
local function shared_hints(tag, held, keys, count, most, bound)
  local at_of, shared = positions(tag, keys, count), {}
  local last = string.format('(%.17g', bound)
  for _, member in ipairs(redis.call('ZRANGE', held, '-inf', last, 'BYSCORE', 'LIMIT', 0, most)) do
    local rid, partition, score = string.match(member, '^(%S+) (%S+) (%S+) %S+$')
    if at_of[rid] then
      shared[#shared + 1] = { at_of[rid], partition, score }
    end
  end
  return shared
end

-- Add a hint to a reply.
local function add_hint(reply, hint, is_shared)
  local at = #reply
  reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = hint[1], hint[2], hint[3], is_shared
end
