-- Cancel an execution that has not ended. `overrides` 0: the holder of the lease cancels, with its fence while the
-- execution is active; 1: an operator or the system. Answers whether it was cancelled before.
-- KEYS: execution eligible due own lost
-- ARGV: lease_id:uuid? lease_epoch:int? attempt_id:uuid? lane:text? route:text? overrides:flag reason:text cancelled_by:text actor:text
-- Refuses: execution_not_found execution_not_active fence_required lease_revoked lease_expired stale_lease

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local phase = S.phase[r.vector]
if phase == 'terminal' then
  if S.outcome[r.vector] == 'cancelled' then
    return ok(1)
  end
  return not_active(r)
end
if overrides == 0 then
  if lease_id then
    refused = guard(K, r, now, lease_id, lease_epoch, attempt_id, lane, route)
    if refused then
      return refused
    end
  elseif phase == 'active' then
    return refuse('fence_required',
      'an active execution is cancelled by its lease\'s holder with the fence, or by an operator')
  end
end
local name = S.ownership[r.vector] == 'leased' and 'released' or 'ended'
local event = event_of(r, name, now, 'cancelled', 'cancelled', actor)
finish(r, 'cancelled', now, nil, pack_failure('cancelled', 'cancelled', reason))
r.set.c = cmsgpack.pack(reason, cancelled_by)
happened(r, event)
store(K, r)
return ok(0)
