-- The usual way of an execution: created eligible, leased for its first attempt, completed by its holder. What `take` and `finish` do to a
-- loaded record is done here to its fields as they come out of the store, because making a table of a record costs more
-- than all else. Whatever is not usual is left to them. `$core` stands for the core fields in their order.

-- Whether a stored record has no rare fields and this vector: both are single bytes.
local function is_usual(v, vector)
  local rare, number = string.byte(v, 1, 2)
  return rare == 0xC2 and number == vector
end

-- Gather the index entries of an execution that went from eligible to leased, or from leased to ended.
local function usual_entries(entries, uuid, due_at_ms, holder, is_leased)
  push(entries.due_add, due_at_ms, uuid)
  effect_due = effect_due and math.min(effect_due, due_at_ms) or due_at_ms
  if is_leased then
    push(entries.ready_rem, uuid)
    push(entries.own_add, 0, holder)
  else
    push(entries.own_rem, holder)
  end
end

-- luacheck: push ignore 221 311 631
-- Make the record of a new execution: packed, its public state, its score when it is eligible, and its timer.
local function created(c, now)
  if c.delay_until_ms or c.absolute_ms or c.relative_ms then
    local delayed = c.delay_until_ms and c.delay_until_ms > now
    local vector = delayed and S.DELAYED.waiting_for_delay.pending_first_attempt or S.ELIGIBLE.pending_first_attempt
    local r = {
      vector = vector, priority = c.priority, eligible_since_ms = delayed and c.delay_until_ms or now,
      created_at_ms = now, run_started_at_ms = now, last_mutation_at_ms = now, history_count = 0, lease_epoch = 0,
      total_attempt_count = 0, retry_count = 0, reclaim_count = 0, replay_count = 0,
      not_before_ms = delayed and c.delay_until_ms or nil, deadline_at_ms = deadline_at(c.absolute_ms, c.relative_ms, now),
    }
    r.due_kind, r.due_at_ms = timer_of(r)
    return dump(r), S.public[vector], not delayed and score_of(r), r.due_at_ms
  end
  local $core
  vector, priority, eligible_since_ms = S.ELIGIBLE.pending_first_attempt, c.priority, now
  created_at_ms, run_started_at_ms, last_mutation_at_ms = now, now, now
  history_count, lease_epoch, total_attempt_count = 0, 0, 0
  return cmsgpack.pack(false, $core), S.public[vector], now - priority * 1e12, nil
end

-- Lease an execution whose stored fields are `v` and `d`; the packed record, or nil when it is not a usual one.
local function usual_take(K, uuid, v, d, now, worker, instance, ttl, claim, lease, attempt)
  if not is_usual(v, S.ELIGIBLE.pending_first_attempt) then
    return nil
  end
  local s = load_static(d)
  local _, $core = cmsgpack.unpack(v)
  if attempt_id or s.attempt_timeout_ms or started_at_ms then
    return nil
  end
  now = math.max(now, last_mutation_at_ms)
  vector = S.LEASED
  lease_id, lease_epoch, claim_id, worker_id, worker_instance = lease, lease_epoch + 1, claim, worker, instance
  acquired_at_ms, ttl_ms, expires_at_ms = now, ttl, now + ttl
  attempt_id, attempt_index, attempt_type = attempt, total_attempt_count, 'initial'
  attempt_state, attempt_started_at_ms, attempt_epoch = 'started', now, lease_epoch
  total_attempt_count = total_attempt_count + 1
  started_at_ms, last_mutation_at_ms = now, now
  history_count = history_count + 1
  due_kind, due_at_ms = 'lease_expiry', expires_at_ms
  local packed = cmsgpack.pack(false, $core)
  redis.call('HSET', K.tag .. 'x:' .. uuid, 'v', packed, 'e' .. history_count,
    cmsgpack.pack(now, 'acquired', nil, lease_id, lease_epoch, attempt_id, attempt_index, worker_instance, nil, nil))
  usual_entries(K.entries, uuid, due_at_ms, s.namespace .. ' ' .. instance .. ' ' .. uuid, true)
  redis.pcall('SPUBLISH', K.tag .. 'ch:' .. uuid, '1')
  return packed
end

-- Complete the execution `key` whose stored fields are `v` and `d`, and that has no answers; when, or nil when it is not
-- a usual one. `c` is the command, as `execution_complete` has it, with its result inside.
local function usual_complete(K, key, v, d, now, c)
  if not is_usual(v, S.LEASED) then
    return nil
  end
  local s = load_static(d)
  local _, $core = cmsgpack.unpack(v)
  now = math.max(now, last_mutation_at_ms)
  if not c[1] or lease_id ~= c[1] or lease_epoch ~= c[2] or attempt_id ~= c[3]
    or expires_at_ms <= now or (c[4] and c[4] ~= s.lane) or (c[5] and c[5] ~= s.route) or s.rid ~= K.rid
    or s.frames_ttl_ms or stream_closed_at_ms or attempt_state ~= 'started' then
    return nil
  end
  local uuid, ending = string.sub(key, -36), S.ENDING.success
  history_count = history_count + 1
  local event = cmsgpack.pack(now, 'released', 'completed', lease_id, lease_epoch, attempt_id, attempt_index,
    worker_instance, 'success', c[7])
  vector = S.ENDED.success.attempt_terminal
  stream_closed_at_ms, stream_closed_reason = now, ending[2]
  attempt_state, attempt_ended_at_ms = ending[1], now
  lease_id, claim_id, acquired_at_ms, ttl_ms, expires_at_ms = nil, nil, nil, nil, nil
  completed_at_ms, last_mutation_at_ms = now, now
  retention_due_at_ms = now + (s.retention_ms or S.RETENTION_DEFAULT_MS)
  due_kind, due_at_ms = 'retention', retention_due_at_ms
  local answer = cmsgpack.pack('execution.complete', c[1], c[2], c[6], cmsgpack.pack(now))
  if c[8] then
    result, result_type = '', c[8]
    redis.call('HSET', key, 'v', cmsgpack.pack(false, $core), 'e' .. history_count, event, 'w', answer, 'r', c[10])
  else
    redis.call('HSET', key, 'v', cmsgpack.pack(false, $core), 'e' .. history_count, event, 'w', answer)
  end
  usual_entries(K.entries, uuid, due_at_ms, s.namespace .. ' ' .. worker_instance .. ' ' .. uuid, false)
  redis.pcall('SPUBLISH', K.tag .. 'ch:' .. uuid, '1')
  return now
end
-- luacheck: pop
