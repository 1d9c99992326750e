-- Give hints back, take the best ones of the first `wanted` routes, and ring where work is left behind. A taken hint is
-- the caller's until it gives it back or two seconds are over: others go to other partitions first. `given` are hints
-- to give back, five values each: which of the keys, partition, score as taken (empty: somebody else holds it), score of
-- the new head (empty: the index has none), and how much the index has. Answers the catalog's version, the score of the
-- best hint that was left, and the taken ones, four values each: which key, partition, score, and 1 when somebody else
-- holds it: those are given when there are no others, so that no work is overlooked, and when they are better. A
-- `claim_id` whose claim is known answers `repeated` and its partitions instead, unless `again` says that this call goes
-- on with that claim. `woken` is the key of the route whose bell made the caller look, or 0.
-- KEYS: meta held hints...
-- ARGV: wanted:int most:int woken:int claim_id:uuid? again:flag keep_ms:int given:rest
-- Refuses: invalid_input slot_migrating
-- Touches: bells of the routes (informing only), and the record of the claim (`c:` and its id)

local HOLD_MS, DEPTH_MAX, SLACK_MS, BETTER_SEEN_MAX = 2000, 16, 200, 48
local indexes = K.hintss
local rids = {}
for at, key in ipairs(indexes) do
  rids[at] = string.sub(key, #tag + 3)
end
if wanted > #indexes or woken > wanted or most > 256 or #given % 5 ~= 0 then
  return refuse('invalid_input', 'malformed call of a function: hints', 'field', 'given')
end
local dropped, added, depths = {}, {}, {}
for at = 1, #given, 5 do
  local index, partition, taken, new = tonumber(given[at]), given[at + 1], given[at + 2], given[at + 3]
  if not indexes[index] or not is_integer(partition) or (taken ~= '' and not is_score(taken))
    or (new ~= '' and not is_score(new)) or not is_integer(given[at + 4]) then
    return refuse('invalid_input', 'malformed call of a function: hints', 'field', 'given')
  end
  if taken ~= '' then
    dropped[#dropped + 1] = rids[index] .. ' ' .. partition .. ' ' .. taken
  end
  if new ~= '' then
    local scores = added[index] or {}
    added[index] = scores
    scores[#scores + 1] = new
    scores[#scores + 1] = partition
    depths[index] = math.max(depths[index] or 0, tonumber(given[at + 4]))
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
local is_repeated = known and again == 0
local takes = most > 0 and not is_repeated
add_expired(K.held, now, rids, dropped, added)
put_back(K.held, dropped, indexes, added)

local found, left = {}, {}
if takes then
  found, left = best_hints(indexes, wanted, most)
end
local bound, holds, removed = found[most + 1] and found[most + 1][3] or false, {}, {}
local reply = ok(version, bound)
local function answer(hint, is_shared)
  local at = #reply
  reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = hint[1], hint[2], hint[3], is_shared
end
for at = 1, math.min(most, #found) do
  local hint = found[at]
  local members = removed[hint[1]] or {}
  removed[hint[1]] = members
  members[#members + 1] = hint[2]
  holds[#holds + 1] = now + HOLD_MS
  holds[#holds + 1] = rids[hint[1]] .. ' ' .. hint[2] .. ' ' .. hint[3]
  answer(hint, 0)
end
for index, members in pairs(removed) do
  redis.call('ZREM', indexes[index], unpack(members))
  if wanted == 1 then
    left[index] = bound and true or nil
  else
    left[index] = redis.call('EXISTS', indexes[index]) == 1 or nil
  end
end
local partitions = { known or nil }
if #holds > 0 then
  local worst = found[math.min(most, #found)][4] - SLACK_MS
  for _, hint in ipairs(shared_hints(K.held, rids, wanted, BETTER_SEEN_MAX)) do
    if hint[4] < worst then
      answer(hint, 1)
    end
  end
  redis.call('ZADD', K.held, unpack(holds))
elseif takes then
  local shared = shared_hints(K.held, rids, wanted, HOLDS_SEEN_MAX)
  for at = 1, math.min(most, #shared) do
    answer(shared[at], 1)
  end
end

-- Whoever waits is told of what came back, and of what the caller was woken for and did not take; nobody is sent after
-- what is gone. Bells only inform.
local waiting = {}
for index, scores in pairs(added) do
  if left[index] or index > wanted or not takes then
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
if record and #reply > 5 then
  for at = 7, #reply, 4 do
    partitions[#partitions + 1] = reply[at]
  end
  redis.call('SET', record, table.concat(partitions, ' '), 'PX', math.max(keep_ms, 1))
end
return reply
