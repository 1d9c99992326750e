-- Record a lease or grant that ran out; make lost work claimable when its grace is over, or end it at the cap.
-- KEYS: execution eligible due own lost
-- ARGV:
-- Refuses: execution_not_found

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
if is_overdue(r, now) then
  expire_lease(r, now)
  store(K, r)
  return ok(S.phase[r.vector] == 'terminal' and 'failed' or 'expired')
end
local status = 'not_due'
if r.grant_expires_at_ms and r.grant_expires_at_ms <= now then
  r.grant_expires_at_ms, r.last_mutation_at_ms = nil, now
  status = 'grant_expired'
end
if r.reclaim_at_ms and r.reclaim_at_ms <= now then
  if at_reclaim_cap(r) then
    cap_reached(r, now)
    store(K, r)
    return ok('failed')
  end
  r.reclaim_at_ms, r.reclaim_ready, r.last_mutation_at_ms = nil, true, now
  status = 'reclaimable'
end
if status ~= 'not_due' then
  store(K, r)
end
return ok(status)
