-- The usual way of an execution: created eligible, leased for its first attempt, completed by its holder. What `take` and
-- `finish` do to a loaded record is done here to the stored texts: what stays is copied, what all the executions of a call
-- get alike is packed once, and nothing else is read. Whatever is not usual is left to them. A `$` with two names stands for
-- the fields of a record from one to the other.

-- luacheck: push ignore 113 211 221 311 631
local UUID, DIGEST, IDS_BYTES = '\217\36', '\217\32', 2 * 38
local FIRST_EPOCH, NOTHING, ANSWERED = '\1', '\192', '\178execution.complete'

-- Whether a stored record is that of an execution that is eligible and was never leased.
local function is_fresh(v)
  local form, vector = string.byte(v, 1, 2)
  return form == CORE and vector == S.ELIGIBLE.pending_first_attempt and string.sub(v, HEAD_BYTES + 1) == FRESH
end

local function packed_number(number)
  return struct.pack('>BI8', 0xCF, number)
end

local function last_number(v, last)
  return (struct.unpack('>I8', v, last - 7))
end

-- Gather the index entries of an execution that went from eligible to leased, or from leased to ended. `due` is the
-- timer as a text.
local function usual_entries(entries, uuid, due_at_ms, due, holder, is_leased)
  push(entries.due_add, due, uuid)
  effect_due = effect_due and math.min(effect_due, due_at_ms) or due_at_ms
  if is_leased then
    push(entries.ready_rem, uuid)
    push(entries.own_add, '0', holder)
  else
    push(entries.own_rem, holder)
  end
end

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
  local vector = S.ELIGIBLE.pending_first_attempt
  return pack_head(CORE, vector, c.priority, now, now, now, now) .. FRESH, S.public[vector], now - c.priority * 1e12, nil
end

-- What the executions that a call leases at an instant get alike.
local function taken_at(now, worker, instance, ttl, claim)
  local $attempt_id..due_at_ms
  lease_epoch, attempt_index, worker_instance, worker_id = 1, 0, instance, worker
  attempt_type, attempt_started_at_ms, attempt_epoch, total_attempt_count, started_at_ms = 'initial', now, 1, 1, now
  claim_id, history_count, acquired_at_ms, ttl_ms, expires_at_ms = claim, 1, now, ttl, now + ttl
  attempt_state, due_kind, due_at_ms = 'started', 'lease_expiry', now + ttl
  return {
    now = now, head = string.char(FIRST, S.LEASED), at = packed_number(now),
    due_at_ms = due_at_ms, due = string.format('%.0f', due_at_ms), event = cmsgpack.pack(now, 'acquired', nil, nil, nil),
    holder = cmsgpack.pack($lease_epoch..worker_instance), rest = cmsgpack.pack($worker_id..due_kind) .. packed_number(due_at_ms),
  }
end

-- Lease an execution whose stored fields are `v`, a fresh one, and `s`, with no time limit of an attempt; the packed
-- record. Both ids have 36 bytes.
local function usual_take(K, key, uuid, v, s, now, worker, instance, ttl, claim, lease, attempt)
  now = math.max(now, last_number(v, HEAD_BYTES))
  local alike = K.alike
  if not alike or alike.now ~= now then
    alike = taken_at(now, worker, instance, ttl, claim)
    K.alike = alike
  end
  local packed = alike.head .. string.sub(v, 3, HEAD_BYTES - 9) .. alike.at
    .. UUID .. attempt .. UUID .. lease .. alike.holder .. alike.rest
  redis.call('HSET', key, 'v', packed, 'e1', alike.event .. UUID .. attempt .. UUID .. lease .. alike.holder)
  usual_entries(K.entries, uuid, alike.due_at_ms, alike.due, s.namespace .. ' ' .. instance .. ' ' .. uuid, true)
  redis.pcall('SPUBLISH', K.tag .. 'ch:' .. uuid, '1')
  return packed
end

-- What the executions that a call completes at an instant get alike.
local function completed_at(now, s, c)
  local ending = S.ENDING.success
  local $claim_id..due_at_ms
  history_count, attempt_state, attempt_ended_at_ms = 2, ending[1], now
  stream_closed_at_ms, stream_closed_reason = now, ending[2]
  completed_at_ms, retention_due_at_ms = now, now + (s.retention_ms or S.RETENTION_DEFAULT_MS)
  result, result_type = c[8] and '', c[8]
  due_kind, due_at_ms = 'retention', retention_due_at_ms
  return {
    now = now, s = s, actor = c[7], media = c[8],
    head = string.char(CORE, S.ENDED.success.attempt_terminal), at = packed_number(now),
    due_at_ms = due_at_ms, due = string.format('%.0f', due_at_ms),
    event = cmsgpack.pack(now, 'released', 'completed', 'success', c[7]),
    rest = cmsgpack.pack($claim_id..due_at_ms), answer = cmsgpack.pack(cmsgpack.pack(now)),
  }
end

-- Complete the execution `key` whose stored fields are `v` and `d`, and that has no answers; when, or nil when it is not
-- a usual one. `c` is the command, as `execution_complete` has it, with its result inside.
local function usual_complete(K, key, v, d, now, c)
  if string.byte(v) ~= FIRST then
    return nil
  end
  local s, lease, attempt = load_static(d), c[1], c[3]
  now = math.max(now, last_number(v, HEAD_BYTES))
  if c[2] ~= 1 or not lease or not attempt
    or string.find(v, attempt, HEAD_BYTES + 3, true) ~= HEAD_BYTES + 3
    or string.find(v, lease, HEAD_BYTES + 41, true) ~= HEAD_BYTES + 41
    or last_number(v, #v) <= now or (c[4] and c[4] ~= s.lane) or (c[5] and c[5] ~= s.route) or s.rid ~= K.rid
    or s.frames_ttl_ms or #c[6] ~= 32 then
    return nil
  end
  local alike = K.alike
  if not alike or alike.now ~= now or alike.s ~= s or alike.actor ~= c[7] or alike.media ~= c[8] then
    alike = completed_at(now, s, c)
    K.alike = alike
  end
  local ids_end = HEAD_BYTES + IDS_BYTES
  local instance_end, instance = cmsgpack.unpack_one(v, ids_end + 2)
  local kept_end = cmsgpack.unpack_limit(v, KEPT_FIELDS, instance_end)
  local packed = alike.head .. string.sub(v, 3, HEAD_BYTES - 9) .. alike.at .. UUID .. attempt .. NOTHING
    .. string.sub(v, ids_end + 1, kept_end) .. alike.rest
  local event = alike.event .. string.sub(v, HEAD_BYTES + 1, instance_end)
  local answer = ANSWERED .. UUID .. lease .. FIRST_EPOCH .. DIGEST .. c[6] .. alike.answer
  if c[8] then
    redis.call('HSET', key, 'v', packed, 'e2', event, 'w', answer, 'r', c[10])
  else
    redis.call('HSET', key, 'v', packed, 'e2', event, 'w', answer)
  end
  local uuid = string.sub(key, -36)
  usual_entries(K.entries, uuid, alike.due_at_ms, alike.due, s.namespace .. ' ' .. instance .. ' ' .. uuid, false)
  redis.pcall('SPUBLISH', K.tag .. 'ch:' .. uuid, '1')
  return now
end
-- luacheck: pop
