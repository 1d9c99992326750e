-- End an active execution with success.
-- KEYS: execution eligible due own lost [payload]
-- ARGV: lease_id:uuid? lease_epoch:int? attempt_id:uuid? lane:text? route:text? digest:text actor:text result_type:text? inline:text
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Touches: the staged result, which it adopts.

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local first = repeated(K, r, 'execution.complete', lease_id, lease_epoch, attempt_id, digest)
if first then
  return first
end
refused = guard(K, r, now, lease_id, lease_epoch, attempt_id, lane, route)
if refused then
  return refused
end
if K.payload and redis.call('PERSIST', K.payload) == 0 then
  return refuse('payload_missing')
end
local event = event_of(r, 'released', now, 'completed', 'success', actor)
finish(r, 'success', now)
happened(r, event)
if K.payload then
  r.result, r.result_type = string.sub(K.payload, #K.tag + 3), result_type
elseif result_type then
  r.result, r.result_type = '', result_type
  r.set.r = inline
end
answered(r, 'execution.complete', lease_id, lease_epoch, digest, now)
store(K, r)
return ok(now)
