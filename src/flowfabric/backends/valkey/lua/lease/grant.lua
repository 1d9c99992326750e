-- Permit one worker to take an execution; it leaves the eligible index until the grant is used or runs out. Answers
-- `granted` with purpose, expiry and lane, or `reclaim_cap_exceeded` with the count. `missing` are the required
-- capabilities that the worker lacks, as the caller worked them out from `required`, which never changes.
-- KEYS: execution eligible due own lost lanes
-- ARGV: worker_id:text worker_instance:text purpose:text? ttl_ms:int missing:rest
-- Refuses: execution_not_found execution_not_reclaimable execution_not_eligible grant_already_exists lane_not_accepting use_claim_resumed_execution not_a_resumed_execution capability_mismatch

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local overdue = is_overdue(r, now)
if overdue then
  expire_lease(r, now)
end

local function refusal_of()
  local ownership = S.ownership[r.vector]
  local is_lost = ownership == 'lease_expired_reclaimable' or ownership == 'lease_revoked'
  local public = S.public[r.vector]
  if purpose == 'reclaim' and not is_lost then
    return 'execution_not_reclaimable', false, 'public_state', public
  end
  if not is_lost and S.eligibility[r.vector] ~= 'eligible_now' then
    return 'execution_not_eligible', false, 'public_state', public
  end
  if r.grant_expires_at_ms and r.grant_expires_at_ms > now then
    return 'grant_already_exists', false, 'expires_at_ms', r.grant_expires_at_ms
  end
  local state = redis.call('HGET', K.lanes, r.d.lane)
  state = state and string.match(state, '^[a-z]+') or 'active'
  if not S.LANE_ACCEPTS_CLAIMS[state] then
    return 'lane_not_accepting', 'lane ' .. r.d.lane .. ' is ' .. state .. ' and gives no work out',
      'lane', r.d.lane, 'state', state
  end
  local code, message = wrong_purpose(purpose, purpose_of(r))
  if code then
    return code, message
  end
  if #missing > 0 then
    return 'capability_mismatch', 'the worker lacks ' .. table.concat(missing, ', '), 'missing', missing
  end
end

local code, message, name, value, second, other = refusal_of()
if code then
  if overdue then
    store(K, r)
  end
  if second then
    return refuse(code, message, name, value, second, other)
  elseif name then
    return refuse(code, message, name, value)
  end
  return refuse(code, message)
end
if S.phase[r.vector] == 'active' and at_reclaim_cap(r) then
  cap_reached(r, now)
  store(K, r)
  return ok('reclaim_cap_exceeded', r.reclaim_count)
end
local needed = purpose_of(r)
r.grant_expires_at_ms = now + ttl_ms
r.set.g = cmsgpack.pack(needed, worker_id, worker_instance, now, r.grant_expires_at_ms)
r.last_mutation_at_ms = now
store(K, r)
return ok('granted', needed, r.grant_expires_at_ms, r.d.lane)
