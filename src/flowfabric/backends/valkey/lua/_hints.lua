-- Hints: best heads of eligible indexes, and earliest timers, by partition. A hint that was taken has a member
-- `<route> <partition> <score>` in the holds, whose score is when the hold runs out.

local HOLDS_SEEN_MAX = 1024

-- Whether a text is a score as hints have them: a number that a sorted set takes.
local function is_score(text)
  local value = #text < 25 and string.find(text, '^%-?%d+%.?%d*[eE]?%+?%d*$') and tonumber(text)
  return value and value > -1e17 and value < 1e17
end

-- Put `count` tokens on a route's bell, and more if there are not `least` of them then: each wakes one of those who wait
-- for its work. Every hint that appears brings one, so there are never fewer tokens and woken waiters than hints; a
-- waiter that was woken for one route and takes from another gives its token back. Tokens only inform, so nothing here
-- fails a function that has written.
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
  return one[1] * 65536 + tonumber(one[2]) < other[1] * 65536 + tonumber(other[2])
end

-- Which of the first `count` routes a hold is for, by route.
local function positions(rids, count)
  local at_of = {}
  for at = 1, count do
    at_of[rids[at]] = at
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

-- Have the holds that ran out put back, because their holder is gone: adds to `dropped` and `added`.
local function add_expired(held, now, rids, dropped, added)
  local expired = redis.call('ZRANGE', held, '-inf', now, 'BYSCORE', 'LIMIT', 0, HOLDS_SEEN_MAX)
  if #expired == 0 then
    return
  end
  local at_of = positions(rids, #rids)
  for _, member in ipairs(expired) do
    local rid, partition, score = string.match(member, '^(%S+) (%S+) (%S+)$')
    local index = at_of[rid]
    if index then
      local scores = added[index] or {}
      added[index] = scores
      scores[#scores + 1] = score
      scores[#scores + 1] = partition
      dropped[#dropped + 1] = member
    end
  end
end

-- The best hints of the first `count` keys, `most` and the next best at least: first the best of each key, then more of
-- those that can have more. Also tells which of the keys have hints.
local function best_hints(keys, count, most)
  local found, has_some = {}, {}
  local function look(index, first, last)
    local seen = redis.call('ZRANGE', keys[index], first, last, 'WITHSCORES')
    for at = 1, #seen, 2 do
      found[#found + 1] = { index, seen[at], seen[at + 1], tonumber(seen[at + 1]) }
      has_some[index] = true
    end
  end
  if count == 1 then
    look(1, 0, most)
    return found, has_some
  end
  for index = 1, count do
    look(index, 0, 0)
  end
  table.sort(found, is_better)
  for at = 1, math.min(most, #found) do
    look(found[at][1], 1, most)
  end
  table.sort(found, is_better)
  return found, has_some
end

-- The best hints of the first `count` routes that others hold, among the `most` oldest holds.
local function shared_hints(held, rids, count, most)
  local at_of, shared = positions(rids, count), {}
  for _, member in ipairs(redis.call('ZRANGE', held, 0, most - 1)) do
    local rid, partition, score = string.match(member, '^(%S+) (%S+) (%S+)$')
    if at_of[rid] then
      shared[#shared + 1] = { at_of[rid], partition, score, tonumber(score) }
    end
  end
  table.sort(shared, is_better)
  return shared
end
