-- Give hints back, take the best ones of the first `wanted` routes, and ring where work is left behind. A taken hint is
-- the caller's until it gives it back or two seconds are over: others go to other partitions first. `given` are hints
-- to give back, five values each: which of the keys, partition, the hold as it was taken, score and instant (empty:
-- somebody else holds it), score of the new head (empty: the index has none), and how much the index has. Answers the
-- catalog's version where nothing was taken, the score of the best hint that was left, until when the taken ones are
-- held, and these, four values each: which key, partition, score, and 1 when somebody else holds it: those are given
-- when they are better, and when there are no others, so that no work is overlooked; unless the caller `waits`, because
-- then it is woken when they are given back. A `claim_id` whose claim is known answers `repeated` and its partitions
-- instead, unless `again` says that this call goes on with that claim. `woken` is the key of the route whose bell made
-- the caller look, or 0.
-- KEYS: meta held hints...
-- ARGV: wanted:int most:int waits:flag woken:int claim_id:uuid? again:flag keep_ms:int given:rest
-- Refuses: invalid_input slot_migrating
-- Touches: bells of the routes (informing only), and the record of the claim (`c:` and its id)

local DEPTH_MAX, SLACK_MS, BETTER_SEEN_MAX = 16, 200, 48
local indexes = hintss
if wanted > #indexes or woken > wanted or most > 256 or #given % 5 ~= 0 then
  return refuse('invalid_input', 'malformed call of a function: hints', 'field', 'given')
end
local dropped, added, depths = {}, {}, {}
for at = 1, #given, 5 do
  local index, partition, hold, new = tonumber(given[at]), hint_partition(given[at + 1]), given[at + 2], given[at + 3]
  local key, score, depth = indexes[index], new == '' or hint_score(new), is_integer(given[at + 4])
  if not key or not partition or not score or not depth or hold ~= '' and not string.find(hold, ' ', 1, true) then
    return refuse('invalid_input', 'malformed call of a function: hints', 'field', 'given')
  end
  if hold ~= '' then
    dropped[#dropped + 1] = string.sub(key, #tag + 3) .. ' ' .. given[at + 1] .. ' ' .. hold
  end
  if new ~= '' then
    local scores = added[index] or {}
    added[index] = scores
    scores[#scores + 1] = score
    scores[#scores + 1] = partition
    depths[index] = math.max(depths[index] or 0, depth)
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
local is_repeated = known and again == 0
local takes = most > 0 and not is_repeated
put_back(held, dropped, indexes, added)

local found, seen, count, shared, shown = {}, {}, 0, {}, BETTER_SEEN_MAX
local held_until = false
if takes then
  local best = best_held(tag, held, now, indexes, added)
  found, seen = best_hints(indexes, wanted, most)
  count = math.min(most, #found)
  if count > 0 then
    local worst = tonumber(found[count][3]) - SLACK_MS
    held_until = string.format('%d', now + HOLD_MS)
    if best < worst then
      shared = shared_hints(tag, held, indexes, wanted, BETTER_SEEN_MAX, worst)
    end
  elseif waits == 0 and best < math.huge then
    shared, shown = shared_hints(tag, held, indexes, wanted, HOLDS_SEEN_MAX, math.huge), most
  end
end
local reply = ok(false, found[most + 1] and found[most + 1][3] or false, held_until)
local removed, holds = {}, {}
for at = 1, count do
  local hint = found[at]
  local index, members = hint[1], removed[hint[1]]
  if not members then
    members = {}
    removed[index] = members
  end
  members[#members + 1] = hint[2]
  holds[2 * at - 1] = hint[3]
  holds[2 * at] = string.sub(indexes[index], #tag + 3) .. ' ' .. hint[2] .. ' ' .. hint[3] .. ' ' .. held_until
  add_hint(reply, hint, 0)
end
for index, members in pairs(removed) do
  redis.call('ZREM', indexes[index], unpack(members))
end
if count > 0 then
  redis.call('ZADD', held, unpack(holds))
end
for at = 1, math.min(#shared, shown) do
  add_hint(reply, shared[at], 1)
end

-- Whoever waits is told of what came back, and of what the caller was woken for and did not take; nobody is sent after
-- what is gone, and what the caller takes instead of what it brings needs no other. Bells only inform.
for at = 1, #indexes do
  local came, took = added[at] and #added[at] / 2 or 0, removed[at] and #removed[at] or 0
  local is_seen = takes and at <= wanted
  local news = came - took + (woken == at and 1 or 0)
  if news > 0 and (not is_seen or seen[at] > took) then
    ring(tag, indexes[at], news, math.min(depths[at] or 0, DEPTH_MAX))
  elseif took > 0 and seen[at] == took then
    redis.pcall('DEL', tag .. 'bell:' .. string.sub(indexes[at], #tag + 3))
  end
end

if is_repeated then
  return ok(false, 'repeated', known)
end
if #reply == 6 then
  reply[4] = tonumber(redis.call('HGET', meta, 'catalog') or 0)
elseif record then
  local partitions = { known or nil }
  for at = 8, #reply, 4 do
    partitions[#partitions + 1] = reply[at]
  end
  redis.call('SET', record, table.concat(partitions, ' '), 'PX', math.max(keep_ms, 1))
end
return reply
