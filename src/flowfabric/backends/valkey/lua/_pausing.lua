-- Giving the lease back to continue the same attempt later: what delay and wait_children share.

-- `fence` holds lease_id, lease_epoch, attempt_id, lane, route. Returns the reply.
local function pause(K, now, operation, digest, reason, actor, fence, vector, not_before)
  local r, refused = open(K)
  if not r then
    return refused
  end
  now = since(r, now)
  local first = repeated(K, r, operation, fence[1], fence[2], fence[3], digest)
  if first then
    return first
  end
  refused = guard(K, r, now, fence[1], fence[2], fence[3], fence[4], fence[5])
  if refused then
    return refused
  end
  local event = event_of(r, 'released', now, reason, nil, actor)
  if r.attempt_id then
    r.attempt_state, r.timeout_at_ms = 'suspended', nil
  end
  leave(r, vector, now)
  r.not_before_ms = not_before
  happened(r, event)
  answered(r, operation, fence[1], fence[2], digest, S.public[vector], not_before or false)
  store(K, r)
  return ok(S.public[vector], not_before or false)
end
