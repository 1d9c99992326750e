-- Loading and storing one execution. `load`, `dump` and `load_static` are generated from the records before this.
-- K holds the keys of the call: execution, eligible, due, own, lost and the partition's tag.

local function is_ready(r)
  if r.grant_expires_at_ms then
    return false
  end
  if S.phase[r.vector] == 'runnable' then
    return S.eligibility[r.vector] == 'eligible_now'
  end
  return r.reclaim_ready == true
end

-- Time as this execution has seen it: when the server's clock jumps back, it stands still until it has caught up.
local function since(r, now)
  return math.max(now, r.last_mutation_at_ms)
end

local function score_of(r)
  return r.eligible_since_ms - r.priority * 1e12
end

local function timer_of(r)
  local kind, at
  local function offer(name, instant)
    if instant and (not at or instant < at) then
      kind, at = name, instant
    end
  end
  if S.phase[r.vector] == 'terminal' then
    offer('retention', r.frames_trim_at_ms)
    offer('retention', r.retention_due_at_ms)
  else
    offer('execution_deadline', r.deadline_at_ms)
    if S.ownership[r.vector] == 'leased' then
      offer('attempt_timeout', r.timeout_at_ms)
      offer('lease_expiry', r.expires_at_ms)
    end
    offer('lease_expiry', r.reclaim_at_ms)
    offer('delayed', r.not_before_ms)
    offer('grant_expiry', r.grant_expires_at_ms)
  end
  offer('retention', r.stream_due_at_ms)
  return kind, at
end

local function lost_of(r)
  if r.lease_id and S.phase[r.vector] == 'active' and S.ownership[r.vector] ~= 'leased' then
    return r.lost_at_ms
  end
end

local function holder_of(r, uuid)
  if S.ownership[r.vector] == 'leased' then
    return r.d.namespace .. ' ' .. r.worker_instance .. ' ' .. uuid
  end
end

-- Make a record of the fields as they were read, and remember its index entries.
local function opened(uuid, v, d, w)
  local r = load(v)
  r.d = load_static(d)
  r.uuid = uuid
  r.answers = w or ''
  r.set = {}
  r.was_vector, r.was_attempt_id = r.vector, r.attempt_id
  r.was_ready = is_ready(r) and score_of(r)
  r.was_due = r.due_at_ms
  r.was_holder = holder_of(r, uuid)
  r.was_lost = lost_of(r)
  return r
end

-- Load the execution of K from its fields v, d and w. Without it, or when K names another route than its own: nil and a
-- refusal.
local function opened_for(K, fields)
  if not fields[1] then
    return nil, refuse('execution_not_found', false, 'execution_id', K.tag .. string.sub(K.execution, -36))
  end
  local r = opened(string.sub(K.execution, -36), fields[1], fields[2], fields[3])
  if K.eligible and K.eligible ~= K.tag .. 'q:' .. r.d.rid then
    return nil, refuse('wrong_route', false, 'rid', r.d.rid)
  end
  return r
end

local function open(K)
  return opened_for(K, redis.call('HMGET', K.execution, 'v', 'd', 'w'))
end

local function event_of(r, name, now, reason, outcome, actor)
  local leased = r.lease_id
  return cmsgpack.pack(now, name, reason or nil, outcome or nil, actor ~= '' and actor or nil, r.attempt_id, leased,
    r.lease_epoch, r.attempt_index, leased and r.worker_instance or nil)
end

-- Append an event to the history, of which about the latest are kept.
local function happened(r, event)
  r.history_count = r.history_count + 1
  r.set['e' .. r.history_count] = event
  if r.history_count > S.HISTORY_KEPT then
    r.forget = 'e' .. (r.history_count - S.HISTORY_KEPT)
  end
end

-- Have the index entries of all that `store` stores from now on written together, by `write_entries`.
local function gather_entries(K)
  K.entries = { due_add = {}, due_rem = {}, own_add = {}, own_rem = {}, ready_rem = {} }
end

local function push(list, first, second)
  list[#list + 1] = first
  list[#list + 1] = second
end

-- Write the entries that were gathered. Nothing here can fail.
local function write_entries(K)
  local entries = K.entries
  K.entries = nil
  if #entries.ready_rem > 0 then
    redis.call('ZREM', K.eligible, unpack(entries.ready_rem))
  end
  if #entries.due_add > 0 then
    redis.call('ZADD', K.due, unpack(entries.due_add))
  end
  if #entries.due_rem > 0 then
    redis.call('ZREM', K.due, unpack(entries.due_rem))
  end
  if #entries.own_rem > 0 then
    redis.call('ZREM', K.own, unpack(entries.own_rem))
  end
  if #entries.own_add > 0 then
    redis.call('ZADD', K.own, unpack(entries.own_add))
  end
end

-- Store what changed, and make the index entries agree. Nothing here can fail.
local function store(K, r)
  local uuid = r.uuid
  local kind, at = timer_of(r)
  r.due_kind, r.due_at_ms = kind, at
  r.packed = dump(r)
  local set = { 'HSET', K.execution or (K.tag .. 'x:' .. uuid), 'v', r.packed }
  for field, value in pairs(r.set) do
    push(set, field, value)
  end
  redis.call(unpack(set))
  if r.forget then
    redis.call('HDEL', set[2], r.forget)
  end
  local alone = not K.entries
  if alone then
    gather_entries(K)
  end
  local entries = K.entries
  local ready = is_ready(r) and score_of(r)
  if ready ~= r.was_ready then
    if ready then
      redis.call('ZADD', K.eligible, ready, uuid)
      if redis.call('ZRANGE', K.eligible, 0, 0)[1] == uuid then
        effect_head = effect_head and math.min(effect_head, ready) or ready
      end
    else
      push(entries.ready_rem, uuid)
    end
  end
  if at ~= r.was_due then
    if at then
      push(entries.due_add, at, uuid)
      effect_due = effect_due and math.min(effect_due, at) or at
    else
      push(entries.due_rem, uuid)
    end
  end
  local holder = holder_of(r, uuid)
  if holder ~= r.was_holder then
    if r.was_holder then
      push(entries.own_rem, r.was_holder)
    end
    if holder then
      push(entries.own_add, 0, holder)
    end
  end
  local lost = lost_of(r)
  if lost ~= r.was_lost then
    if lost then
      redis.call('ZADD', K.lost, lost, uuid)
    else
      redis.call('ZREM', K.lost, uuid)
    end
  end
  if alone then
    write_entries(K)
  end
  if r.vector ~= r.was_vector or r.attempt_id ~= r.was_attempt_id then
    redis.pcall('SPUBLISH', K.tag .. 'ch:' .. uuid, '1')
  end
end
