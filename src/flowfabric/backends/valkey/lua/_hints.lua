-- Hints: best heads of eligible indexes, and earliest timers, by partition.

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
