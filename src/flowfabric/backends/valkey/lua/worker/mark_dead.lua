-- Expire leases that a dead instance holds in one partition, at most `limit` of them. Answers how many entries were
-- looked at, how many leases expired, and pairs of route and head score where work became claimable.
-- KEYS: due own lost
-- ARGV: namespace:text worker_instance:text reason:text limit:int
-- Refuses: slot_migrating
-- Touches: executions that the index names, and the eligible index of each
local holder = namespace .. ' ' .. worker_instance
local held = redis.call('ZRANGEBYLEX', own, '[' .. holder .. ' ', '(' .. holder .. '!', 'LIMIT', 0, limit)
local found = {}
for i, member in ipairs(held) do
  local uuid = string.sub(member, -36)
  local place = { execution = tag .. 'x:' .. uuid, due = due, own = own, lost = lost, tag = tag }
  local fields, refusal = touch('HMGET', place.execution, 'v', 'd', 'w')
  if not fields then
    return refusal
  end
  -- Where a slot is moving to, a key alone that is not there yet is like none at all; two keys are not.
  if not fields[1] then
    local _, failed = touch('EXISTS', place.execution, own)
    if failed then
      return failed
    end
  else
    local r = opened(uuid, fields[1], fields[2], fields[3])
    if r.was_holder == member then
      place.eligible = tag .. 'q:' .. r.d.rid
      local _, failed = touch('EXISTS', place.eligible, own)
      if failed then
        return failed
      end
      found[i] = { place, r }
    end
  end
end
local expired, next_due, heads = 0, false, {}
for i, member in ipairs(held) do
  if found[i] then
    local place, r = found[i][1], found[i][2]
    local instant = since(r, now)
    lose_lease(r, instant, false, instant, reason, false)
    effect_head, effect_due = false, false
    store(place, r)
    expired = expired + 1
    if effect_head then
      heads[r.d.rid] = effect_head
    end
    if effect_due and (not next_due or effect_due < next_due) then
      next_due = effect_due
    end
  else
    -- The entry outlived the lease it stood for.
    redis.call('ZREM', own, member)
  end
end
effect_head, effect_due = false, next_due
local reply = ok(#held, expired)
for rid, head in pairs(heads) do
  reply[#reply + 1] = rid
  reply[#reply + 1] = head
end
return reply
