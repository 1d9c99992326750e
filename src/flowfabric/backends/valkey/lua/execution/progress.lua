-- Store how far the attempt is; what is not given keeps its value, giving nothing writes nothing. Answers the stored
-- progress, packed, or nothing. `has_message` tells an empty message from none.
-- KEYS: execution eligible due own lost
-- ARGV: lease_id:uuid? lease_epoch:int? attempt_id:uuid? lane:text? route:text? percent:number? has_message:flag message:text
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease

if percent and not (percent >= 0 and percent <= 100) then
  return refuse('invalid_input', 'percent is 0 to 100', 'field', 'percent')
end
local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
refused = guard(K, r, now, lease_id, lease_epoch, attempt_id, lane, route)
if refused then
  return refused
end
local stored = redis.call('HGET', K.execution, 'p')
if not percent and has_message == 0 then
  return ok(stored or '')
end
local text
if stored and stored ~= '' then
  local before
  before, text = cmsgpack.unpack(stored)
  percent = percent or before
end
if has_message == 1 then
  text = message
end
local packed = cmsgpack.pack(percent, text, now)
r.set.p = packed
r.last_mutation_at_ms = now
store(K, r)
return ok(packed)
