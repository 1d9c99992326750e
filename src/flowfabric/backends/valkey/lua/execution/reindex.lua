-- Rebuild the index entries of an execution from its record, as every change writes them. An index that is not the one
-- of its route loses it; without a record, every index given does.
-- KEYS: execution eligible due own lost all
-- ARGV: holders:rest
-- Refuses: invalid_input
-- Touches: nothing else. `holders` are entries of `own` that may name this execution wrongly.

local uuid = string.sub(K.execution, -36)
for _, member in ipairs(holders) do
  if #member < 40 or string.sub(member, -37) ~= ' ' .. uuid then
    return malformed('holders')
  end
end
local fields = redis.call('HMGET', K.execution, 'v', 'd')
local r = fields[1] and opened(uuid, fields[1], fields[2], '')
local kind, at, ready, holder, lost_at
if r then
  kind, at = timer_of(r)
  ready, holder, lost_at = is_ready(r) and score_of(r), holder_of(r, uuid), lost_of(r)
  if r.due_kind ~= kind or r.due_at_ms ~= at then
    r.due_kind, r.due_at_ms = kind, at
    redis.call('HSET', K.execution, 'v', dump(r))
  end
end
local function set(key, score, member)
  if score then
    redis.call('ZADD', key, score, member)
  else
    redis.call('ZREM', key, member)
  end
end
for _, member in ipairs(holders) do
  redis.call('ZREM', own, member)
end
if holder then
  redis.call('ZADD', own, 0, holder)
end
local mine = r and eligible == tag .. 'q:' .. r.d.rid
set(eligible, mine and ready, uuid)
set(due, at, uuid)
set(lost, lost_at, uuid)
set(all, r and r.created_at_ms, uuid)
if mine and ready and redis.call('ZRANGE', eligible, 0, 0)[1] == uuid then
  effect_head = ready
end
effect_due = at or false
return ok()
