-- Hand an execution back: claimable at once, as a new attempt, without counting towards the cap.
-- KEYS: execution eligible due own lost
-- ARGV: lease_id:uuid lease_epoch:int attempt_id:uuid lane:text? route:text? reason:text
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local first = repeated(K, r, 'lease.release', lease_id, lease_epoch, attempt_id, '')
if first then
  return first
end
refused = guard(K, r, now, lease_id, lease_epoch, attempt_id, lane, route)
if refused then
  return refused
end
answered(r, 'lease.release', lease_id, lease_epoch, '', true)
lose_lease(r, now, true, now, reason, true)
store(K, r)
return ok(true)
