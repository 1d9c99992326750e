-- How an execution ends, fails, and loses its lease: the same steps for every operation. They change the record in
-- memory; `store` writes it.

local function pack_failure(class, category, message)
  return cmsgpack.pack(class, category, message)
end

local function close_stream(r, now, reason)
  if not r.stream_closed_at_ms then
    r.stream_closed_at_ms, r.stream_closed_reason = now, reason
  end
end

local function drop_lease(r)
  r.lease_id, r.claim_id, r.acquired_at_ms, r.renewed_at_ms, r.ttl_ms, r.expires_at_ms = nil, nil, nil, nil, nil, nil
  r.lost_at_ms, r.lost_reason = nil, nil
  r.reclaim_at_ms, r.reclaim_ready, r.reclaim_exempt = nil, nil, nil
end

local function set_failure(r, failure)
  if failure or r.has_failure then
    r.set.f = failure or ''
    r.has_failure = failure and true or nil
  end
end

-- End the execution: its attempt, stream, lease, timers and waiting all end with it. `failure` is packed, or nil.
local function finish(r, outcome, now, failure, attempt_failure)
  if not r.attempt_id then
    local kept = S.attempt[r.vector]
    r.vector = S.ENDED[outcome][kept == 'pending_first_attempt' and kept or 'none']
  else
    r.vector = S.ENDED[outcome]['attempt_terminal']
    if not S.ATTEMPT_ENDED[r.attempt_state] then
      local ending = S.ENDING[outcome]
      close_stream(r, now, ending[2])
      r.attempt_state, r.attempt_ended_at_ms, r.timeout_at_ms = ending[1], now, nil
      if failure or attempt_failure then
        r.set.z = failure or attempt_failure
      end
    end
  end
  local retention = r.d.retention_ms or S.RETENTION_DEFAULT_MS
  local frames = r.d.frames_ttl_ms
  drop_lease(r)
  r.grant_expires_at_ms, r.not_before_ms = nil, nil
  if r.has_detail then
    r.set.b, r.has_detail = '', nil
  end
  r.completed_at_ms, r.last_mutation_at_ms = now, now
  set_failure(r, failure)
  r.retention_due_at_ms = now + retention
  r.frames_trim_at_ms = frames and frames < retention and now + frames or nil
end

-- Give the lease back without ending.
local function leave(r, vector, now)
  r.vector = vector
  drop_lease(r)
  r.last_mutation_at_ms = now
end

-- How long to wait before the retry after `count` earlier ones; jitter takes half to all of it.
local function retry_delay(d, execution_id, count)
  local delay
  if d.backoff_kind == 'fixed' then
    delay = d.backoff_delay_ms
  else
    delay = d.backoff_max_ms
    if count < 2000 then
      local factor = d.backoff_multiplier ^ count
      if factor < math.huge then
        delay = math.min(d.backoff_delay_ms * factor, delay)
      end
    elseif d.backoff_multiplier == 1 or d.backoff_delay_ms == 0 then
      delay = math.min(d.backoff_delay_ms, delay)
    end
  end
  if d.backoff_jitter then
    local high, low = sha256_head(execution_id .. ':' .. string.format('%.0f', count))
    delay = delay * (0.5 + (high * 4294967296 + low) / 2 ^ 65)
  end
  return math.floor(delay)
end

local function is_listed(categories, category)
  return categories ~= nil and string.find('\0' .. categories .. '\0', '\0' .. category .. '\0', 1, true) ~= nil
end

-- Fail the running attempt; true when a retry follows.
local function fail_attempt(K, r, class, category, message, now)
  local d = r.d
  local failure = pack_failure(class, category, message)
  local may_retry = d.max_retries and r.retry_count < d.max_retries
    and (S.RETRYABLE_CLASSES[class] or is_listed(d.retryable_categories, category))
  if not may_retry then
    finish(r, 'failed', now, failure)
    return false
  end
  if r.attempt_id then
    close_stream(r, now, 'attempt_failure')
    r.attempt_state, r.attempt_ended_at_ms, r.timeout_at_ms = 'ended_failure', now, nil
    r.set.z = failure
  end
  local delay = retry_delay(d, K.tag .. r.uuid, r.retry_count)
  if delay > 0 then
    leave(r, S.DELAYED['waiting_for_retry_backoff']['pending_retry_attempt'], now)
    r.not_before_ms = now + delay
  else
    leave(r, S.ELIGIBLE['pending_retry_attempt'], now)
    r.not_before_ms = nil
  end
  r.retry_count = r.retry_count + 1
  set_failure(r, failure)
  return true
end

local function at_reclaim_cap(r)
  return not r.reclaim_exempt and r.reclaim_count >= (r.d.max_reclaim_count or S.RECLAIM_COUNT_DEFAULT)
end

local function finish_at_cap(r, now)
  finish(r, 'failed', now, pack_failure('infra_crash', 'max_reclaims_exceeded',
    string.format('the execution lost its lease %.0f times, its policy allows %.0f takeovers',
      r.reclaim_count + 1, r.reclaim_count)))
end

-- Take the lease away; after its grace the execution is claimable, or ended at the reclaim cap.
local function lose_lease(r, now, revoked, lost_at, reason, exempt)
  local name = exempt and 'released' or revoked and 'revoked' or 'expired'
  local plain = event_of(r, name, now, reason)
  local capped = event_of(r, name, now, 'max_reclaims_exceeded', 'failed')
  if r.attempt_id and not revoked then
    close_stream(r, now, 'lease_expired')
  end
  local grace = exempt and 0 or r.d.reclaim_grace_ms or 0
  local ready = lost_at + grace <= now
  r.vector = revoked and S.LEASE_REVOKED or S.LEASE_EXPIRED
  r.lost_at_ms, r.lost_reason = lost_at, reason
  r.reclaim_exempt = exempt or nil
  r.reclaim_ready = ready or nil
  r.reclaim_at_ms = not ready and lost_at + grace or nil
  r.last_mutation_at_ms = now
  if ready and at_reclaim_cap(r) then
    finish_at_cap(r, now)
    happened(r, capped)
  else
    happened(r, plain)
  end
end

local function expire_lease(r, now)
  lose_lease(r, now, false, r.expires_at_ms, 'lease_expired', false)
end

local function is_overdue(r, now)
  return S.ownership[r.vector] == 'leased' and r.expires_at_ms <= now
end

-- End the execution because its deadline passed.
local function expire_at_deadline(r, now)
  local name = S.ownership[r.vector] == 'leased' and 'released' or 'ended'
  local event = event_of(r, name, now, 'expired:execution_deadline', 'expired', 'system_timeout')
  finish(r, 'expired', now, pack_failure('timeout', 'execution_deadline', 'the execution\'s deadline passed'))
  happened(r, event)
end

-- End lost work that may not be taken over once more.
local function cap_reached(r, now)
  local event = event_of(r, 'ended', now, 'max_reclaims_exceeded', 'failed')
  finish_at_cap(r, now)
  happened(r, event)
end

-- End an execution that must not run any more; true when it did.
local function end_instead(r, now)
  if r.deadline_at_ms and r.deadline_at_ms <= now then
    expire_at_deadline(r, now)
    return true
  end
  if S.phase[r.vector] == 'active' and at_reclaim_cap(r) then
    cap_reached(r, now)
    return true
  end
  return false
end

-- The earlier of the absolute deadline and the relative one, which counts from the run's start.
local function deadline_at(absolute, relative, run_started)
  if not relative then
    return absolute
  end
  return absolute and math.min(absolute, run_started + relative) or run_started + relative
end
