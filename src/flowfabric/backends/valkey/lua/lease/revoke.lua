-- Take an execution away from its worker. Answers `revoked` with lease id and epoch, or `already_satisfied` and why.
-- KEYS: execution eligible due own lost
-- ARGV: expected_lease_id:uuid? instance:text? reason:text
-- Refuses: execution_not_found execution_not_active stale_lease

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local phase, ownership = S.phase[r.vector], S.ownership[r.vector]
if phase == 'terminal' then
  return not_active(r)
end
if phase ~= 'active' or not r.lease_id then
  return ok('already_satisfied', 'no_active_lease')
end
if ownership == 'lease_revoked' then
  return ok('already_satisfied', 'already_revoked')
end
if ownership == 'lease_expired_reclaimable' then
  return ok('already_satisfied', 'already_expired')
end
if r.expires_at_ms <= now then
  expire_lease(r, now)
  store(K, r)
  return ok('already_satisfied', 'already_expired')
end
if expected_lease_id and expected_lease_id ~= r.lease_id then
  return refuse('stale_lease', false, 'lease_epoch', r.lease_epoch)
end
if instance and instance ~= r.worker_instance then
  return ok('already_satisfied', 'different_worker_instance')
end
local lease_id, epoch = r.lease_id, r.lease_epoch
lose_lease(r, now, true, now, reason, false)
store(K, r)
return ok('revoked', lease_id, epoch)
