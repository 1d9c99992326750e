-- Give hints back, take the best ones of the first `wanted` routes, and ring where work is left behind. A taken hint is
-- the caller's until it gives it back or two seconds are over: others go to other partitions first. `given` are hints
-- to give back, five values each: which of the keys, partition, score as taken (empty: somebody else holds it), score of
-- the new head (empty: the index has none), and how much the index has. Answers the catalog's version, the score of the
-- best hint that was left, and the taken ones, four values each: which key, partition, score, and 1 when somebody else
-- holds it: those are given when there are no others, so that no work is overlooked. A `claim_id` whose claim is known
-- answers `repeated` and its partitions instead, unless `again` says that this call goes on with that claim. `woken` is
-- the key of the route whose bell made the caller look, or 0.
-- KEYS: meta held hints...
-- ARGV: wanted:int most:int woken:int claim_id:uuid? again:flag keep_ms:int given:rest
-- Refuses: invalid_input slot_migrating
-- Touches: bells of the routes (informing only), and the record of the claim (`c:` and its id)

local HOLD_MS, HOLDS_SEEN_MAX, DEPTH_MAX = 2000, 1024, 16
local indexes = K.hintss
local rids = {}
for at, key in ipairs(indexes) do
  rids[at] = string.sub(key, #tag + 3)
end
if wanted > #indexes or woken > wanted or most > 256 or #given % 5 ~= 0 then
  return refuse('invalid_input', 'malformed call of a function: hints', 'field', 'given')
end
for at = 1, #given, 5 do
  local taken, new = given[at + 2], given[at + 3]
  if not indexes[tonumber(given[at])] or not is_integer(given[at + 1]) or (taken ~= '' and not is_score(taken))
    or (new ~= '' and not is_score(new)) or not is_integer(given[at + 4]) then
    return refuse('invalid_input', 'malformed call of a function: hints', 'field', 'given')
  end
end
local record, known = claim_id and tag .. 'c:' .. claim_id, nil
if record then
  local refused
  known, refused = touch('GET', record)
  if refused then
    return refused
  end
end
local version = tonumber(redis.call('HGET', meta, 'catalog') or 0)

-- What is given back, and holds that ran out because their holder is gone.
local dropped, added, depths = {}, {}, {}
local function give(index, partition, score)
  local scores = added[index] or {}
  added[index] = scores
  scores[#scores + 1] = score
  scores[#scores + 1] = partition
end
for at = 1, #given, 5 do
  local index, partition = tonumber(given[at]), given[at + 1]
  if given[at + 2] ~= '' then
    dropped[#dropped + 1] = rids[index] .. ' ' .. partition .. ' ' .. given[at + 2]
  end
  if given[at + 3] ~= '' then
    give(index, partition, given[at + 3])
    depths[index] = math.max(depths[index] or 0, tonumber(given[at + 4]))
  end
end
local expired = redis.call('ZRANGE', K.held, '-inf', now, 'BYSCORE', 'LIMIT', 0, HOLDS_SEEN_MAX)
if #expired > 0 then
  local index_of = {}
  for at, rid in ipairs(rids) do
    index_of[rid] = at
  end
  for _, member in ipairs(expired) do
    local rid, partition, score = string.match(member, '^(%S+) (%S+) (%S+)$')
    if index_of[rid] then
      dropped[#dropped + 1] = member
      give(index_of[rid], partition, score)
    end
  end
end
for first = 1, #dropped, 1000 do
  redis.call('ZREM', K.held, unpack(dropped, first, math.min(first + 999, #dropped)))
end
for index, scores in pairs(added) do
  for first = 1, #scores, 1000 do
    redis.call('ZADD', indexes[index], 'LT', unpack(scores, first, math.min(first + 999, #scores)))
  end
end

-- The best hints: first the best of each route, then more of those routes that can have more.
local left, found = {}, {}
local function look(index, first, last)
  local seen = redis.call('ZRANGE', indexes[index], first, last, 'WITHSCORES')
  for at = 1, #seen, 2 do
    found[#found + 1] = { index, seen[at], seen[at + 1], tonumber(seen[at + 1]) }
  end
  return #seen / 2
end
local function better(one, other)
  if one[4] ~= other[4] then
    return one[4] < other[4]
  end
  return one[1] * 65536 + tonumber(one[2]) < other[1] * 65536 + tonumber(other[2])
end
local taken, bound = {}, false
local is_repeated = known and again == 0
if wanted == 1 and not is_repeated and most > 0 then
  look(1, 0, most)
elseif not is_repeated and most > 0 then
  for index = 1, wanted do
    left[index] = look(index, 0, 0) > 0 and 0 or nil
  end
  table.sort(found, better)
  for at = 1, math.min(most, #found) do
    look(found[at][1], 1, most)
  end
  table.sort(found, better)
end
local removed = {}
for at, hint in ipairs(found) do
  local index = hint[1]
  if at <= most then
    taken[at] = hint
    local members = removed[index] or {}
    removed[index] = members
    members[#members + 1] = hint[2]
  else
    left[index] = 1
    bound = bound or hint[3]
  end
end
for index, members in pairs(removed) do
  redis.call('ZREM', indexes[index], unpack(members))
  if wanted > 1 and left[index] ~= 1 then
    left[index] = redis.call('EXISTS', indexes[index]) == 1 and 1 or nil
  end
end
local reply = ok(version, bound)
if #taken > 0 then
  local holds = {}
  for _, hint in ipairs(taken) do
    holds[#holds + 1] = now + HOLD_MS
    holds[#holds + 1] = rids[hint[1]] .. ' ' .. hint[2] .. ' ' .. hint[3]
    reply[#reply + 1], reply[#reply + 2], reply[#reply + 3], reply[#reply + 4] = hint[1], hint[2], hint[3], 0
  end
  redis.call('ZADD', K.held, unpack(holds))
elseif most > 0 and not is_repeated then
  local index_of, shared = {}, {}
  for at = 1, wanted do
    index_of[rids[at]] = at
  end
  for _, member in ipairs(redis.call('ZRANGE', K.held, 0, HOLDS_SEEN_MAX - 1)) do
    local rid, partition, score = string.match(member, '^(%S+) (%S+) (%S+)$')
    if index_of[rid] then
      shared[#shared + 1] = { index_of[rid], partition, score, tonumber(score) }
    end
  end
  table.sort(shared, better)
  for at = 1, math.min(most, #shared) do
    local hint = shared[at]
    taken[at] = hint
    reply[#reply + 1], reply[#reply + 2], reply[#reply + 3], reply[#reply + 4] = hint[1], hint[2], hint[3], 1
  end
end

-- Whoever waits is told of what came back, and of what the caller was woken for and did not take; nobody is sent after
-- what is gone. Bells only inform.
local waiting = {}
for index, scores in pairs(added) do
  if left[index] or index > wanted or most == 0 or is_repeated then
    waiting[index] = #scores / 2
  end
end
if woken > 0 and left[woken] and not removed[woken] then
  waiting[woken] = (waiting[woken] or 0) + 1
end
for index, count in pairs(waiting) do
  ring(tag, indexes[index], count, math.min(depths[index] or 0, DEPTH_MAX))
end
for index in pairs(removed) do
  if not left[index] then
    redis.pcall('DEL', tag .. 'bell:' .. rids[index])
  end
end

if is_repeated then
  return ok(version, 'repeated', known)
end
if record and #taken > 0 then
  local partitions = { known or nil }
  for _, hint in ipairs(taken) do
    partitions[#partitions + 1] = hint[2]
  end
  redis.call('SET', record, table.concat(partitions, ' '), 'PX', math.max(keep_ms, 1))
end
return reply
