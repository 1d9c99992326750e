-- Guards of fenced operations in their one order, and the answers to repetitions.

local function not_active(r)
  local public = S.public[r.vector]
  return refuse('execution_not_active', 'the execution is ' .. public .. ', not active',
    'terminal_outcome', S.outcome[r.vector], 'lease_epoch', r.lease_epoch,
    'lifecycle_phase', S.phase[r.vector], 'attempt_id', r.attempt_id or false)
end

local function not_eligible(r, message)
  return refuse('execution_not_eligible', message, 'public_state', S.public[r.vector],
    'blocking', S.blocking[r.vector])
end

-- A refusal, or nil when the caller holds the live lease (or, without a fence, may act as if).
local function guard(K, r, now, lease_id, lease_epoch, attempt_id, lane, route)
  if S.phase[r.vector] ~= 'active' then
    return not_active(r)
  end
  local ownership = S.ownership[r.vector]
  if ownership == 'lease_revoked' then
    return refuse('lease_revoked', false, 'reason', r.lost_reason or false)
  end
  if ownership == 'lease_expired_reclaimable' or not r.lease_id then
    return refuse('lease_expired', false, 'expired_at_ms', r.lost_at_ms or false)
  end
  if r.expires_at_ms <= now then
    local expired_at = r.expires_at_ms
    expire_lease(r, now)
    store(K, r)
    return refuse('lease_expired', false, 'expired_at_ms', expired_at)
  end
  if not lease_id then
    return nil
  end
  if lease_id ~= r.lease_id or lease_epoch ~= r.lease_epoch or attempt_id ~= r.attempt_id
    or (lane and lane ~= r.d.lane) or (route and route ~= r.d.route) then
    return refuse('stale_lease', false, 'lease_epoch', r.lease_epoch)
  end
  return nil
end

-- The first answer, when this operation, under this fence, with this content, was carried out before.
local function repeated(K, r, operation, lease_id, lease_epoch, attempt_id, digest)
  if not lease_id or not attempt_id then
    return nil
  end
  local answers = r.answers
  if attempt_id ~= r.attempt_id then
    local index = redis.call('HGET', K.execution, 'n' .. attempt_id)
    answers = index and redis.call('HGET', K.execution, 'w' .. index) or ''
  end
  if answers == '' then
    return nil
  end
  local known = { cmsgpack.unpack(answers) }
  for at = 1, #known, 5 do
    if known[at + 1] == lease_id and known[at + 2] == lease_epoch and known[at] == operation
      and known[at + 3] == digest then
      return ok(cmsgpack.unpack(known[at + 4]))
    end
  end
  return nil
end

-- Remember an operation's answer (the values after `ok`) in the attempt under which it was done: the latest eight.
local function answered(r, operation, lease_id, lease_epoch, digest, ...)
  if not lease_id or not r.attempt_id then
    return
  end
  local entry = cmsgpack.pack(operation, lease_id, lease_epoch, digest, cmsgpack.pack(...))
  if r.answers == '' then
    r.answers = entry
  else
    local known = { cmsgpack.unpack(r.answers) }
    local first = math.max(1, #known - 7 * 5 + 1)
    r.answers = cmsgpack.pack(unpack(known, first)) .. entry
  end
  r.set.w = r.answers
end
