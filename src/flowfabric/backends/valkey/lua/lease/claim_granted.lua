-- Use a grant. Answers `taken` with the eight values of a lease as in `claim` (without the input when it has a key of
-- its own), or `reclaim_cap_exceeded` with the count.
-- KEYS: execution eligible due own lost
-- ARGV: worker_id:text worker_instance:text purpose:text? ttl_ms:int own_lease_id:flag own_attempt_id:flag lease_id:uuid attempt_id:uuid
-- Refuses: execution_not_found execution_not_leaseable lease_conflict invalid_claim_grant claim_grant_expired use_claim_resumed_execution not_a_resumed_execution execution_not_reclaimable

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)

local function answer()
  local fields = redis.call('HMGET', K.execution, 'j', 't', 'i', 's' .. string.format('%.0f', r.attempt_index))
  local sequence = fields[4] and select(2, cmsgpack.unpack(fields[4])) or 0
  return ok('taken', { r.uuid, dump(r), fields[1], fields[2] or false, r.d.input_type,
    not r.d.input and fields[3] or false, r.d.input or false, sequence })
end

local phase = S.phase[r.vector]
if S.ownership[r.vector] == 'leased' then
  if own_lease_id == 1 and lease_id == r.lease_id and worker_instance == r.worker_instance and r.attempt_id
    and (own_attempt_id == 0 or attempt_id == r.attempt_id or r.attempt_epoch ~= r.lease_epoch)
    and r.expires_at_ms > now then
    return answer()
  end
  return refuse('lease_conflict')
end
if phase ~= 'runnable' and phase ~= 'active' then
  return refuse('execution_not_leaseable', false, 'public_state', S.public[r.vector])
end
local given_worker
if r.grant_expires_at_ms then
  local _
  _, given_worker = cmsgpack.unpack(redis.call('HGET', K.execution, 'g'))
end
if given_worker ~= worker_id then
  return refuse('invalid_claim_grant')
end
if r.grant_expires_at_ms <= now then
  return refuse('claim_grant_expired', false, 'expired_at_ms', r.grant_expires_at_ms)
end
local code, message = wrong_purpose(purpose, purpose_of(r))
if code then
  return refuse(code == 'execution_not_eligible' and 'execution_not_leaseable' or code, message)
end
local reclaim_count = r.reclaim_count
if end_instead(r, now) then
  store(K, r)
  if S.outcome[r.vector] == 'failed' then
    return ok('reclaim_cap_exceeded', reclaim_count)
  end
  return refuse('execution_not_leaseable', 'the execution\'s deadline has passed')
end
take(r, redis.call('HGET', K.execution, 'z'), now, worker_id, worker_instance, ttl_ms, nil, lease_id, attempt_id)
store(K, r)
return answer()
