-- Leasing an execution: continue its interrupted attempt, or start the attempt its state calls for.

local function supersede(r, failure)
  local index = string.format('%.0f', r.attempt_index)
  r.set['a' .. index] = dump_attempt(r)
  r.set['n' .. r.attempt_id] = index
  if failure and failure ~= '' then
    r.set['z' .. index] = failure
    r.set.z = ''
  end
  if r.answers ~= '' then
    r.set['w' .. index] = r.answers
    r.set.w = ''
    r.answers = ''
  end
end

local ATTEMPT_TYPE = {
  pending_first_attempt = 'initial',
  pending_retry_attempt = 'retry',
  pending_replay_attempt = 'replay',
}

-- `failure` is field `z`: the packed failure of the attempt that is superseded.
local function take(r, failure, now, worker_id, worker_instance, ttl, claim_id, lease_id, attempt_id)
  local reclaiming = S.phase[r.vector] == 'active'
  local continued = S.attempt[r.vector] == 'attempt_interrupted' and r.attempt_id and not reclaiming
  local epoch = r.lease_epoch + 1
  local timeout = r.d.attempt_timeout_ms and now + r.d.attempt_timeout_ms or nil
  if continued then
    r.attempt_state, r.timeout_at_ms = 'started', timeout
  else
    if r.attempt_id then
      if reclaiming then
        close_stream(r, now, 'reclaimed')
        r.attempt_state, r.attempt_ended_at_ms, r.timeout_at_ms = 'interrupted_reclaimed', now, nil
      end
      supersede(r, failure)
    end
    r.previous_attempt_index = r.attempt_id and r.attempt_index or nil
    r.attempt_id, r.attempt_index = attempt_id, r.total_attempt_count
    r.attempt_type = reclaiming and 'reclaim' or ATTEMPT_TYPE[S.attempt[r.vector]]
    r.attempt_state, r.attempt_started_at_ms, r.attempt_epoch = 'started', now, epoch
    r.timeout_at_ms, r.attempt_ended_at_ms = timeout, nil
    r.stream_closed_at_ms, r.stream_closed_reason = nil, nil
    r.total_attempt_count = r.total_attempt_count + 1
  end
  if reclaiming and not r.reclaim_exempt then
    r.reclaim_count = r.reclaim_count + 1
  end
  r.vector = S.LEASED
  r.lease_id, r.lease_epoch, r.claim_id = lease_id, epoch, claim_id
  r.worker_id, r.worker_instance = worker_id, worker_instance
  r.acquired_at_ms, r.renewed_at_ms, r.ttl_ms, r.expires_at_ms = now, nil, ttl, now + ttl
  r.lost_at_ms, r.lost_reason = nil, nil
  r.reclaim_at_ms, r.reclaim_ready, r.reclaim_exempt, r.grant_expires_at_ms = nil, nil, nil, nil
  r.started_at_ms = r.started_at_ms or now
  r.last_mutation_at_ms = now
  happened(r, event_of(r, reclaiming and 'reclaimed' or 'acquired', now))
end
