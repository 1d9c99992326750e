-- Create an execution, eligible at once or later. `static` is the packed definition for functions, `definition` that
-- for readers, `digest` what makes two creates the same; `route_ok` 1 when the caller knows the route to be registered. Answers `created` with the instant and
-- the public state, or `duplicate` with id, public state and the instant of creation.
-- KEYS: execution eligible due all lanes [idempotency] [payload]
-- ARGV: route_ok:flag digest:text static:text definition:text tags:text? inline:text priority:int delay_until_ms:int? window_ms:int
-- Refuses: idempotency_conflict lane_not_accepting
-- Touches: the staged input, which it adopts; a derived key, the execution that the idempotency key names.

local uuid = string.sub(execution, -36)
local lane, rid, nonce, absolute_ms, relative_ms = read_static(static)
if not lane or digest == '' or eligible ~= tag .. 'q:' .. rid or payload ~= (nonce and tag .. 'p:' .. nonce) then
  return refuse('invalid_input', 'malformed definition of an execution', 'field', 'static')
end

local function duplicate(id, known_digest, record)
  if known_digest ~= digest then
    return refuse('idempotency_conflict', false, 'execution_id', tag .. id)
  end
  if not record then
    return ok('duplicate', tag .. id)
  end
  local known = load(record)
  return ok('duplicate', tag .. id, S.public[known.vector], known.created_at_ms)
end

local known, refused = touch('HMGET', execution, 'v', 'h')
if not known then
  return refused
end
if known[1] then
  return duplicate(uuid, known[2], known[1])
end
if idempotency then
  local entry = redis.call('GET', idempotency)
  local id, known_digest, expires_at
  if entry then
    id, known_digest, expires_at = cmsgpack.unpack(entry)
  end
  if entry and expires_at > now then
    known, refused = touch('HMGET', tag .. 'x:' .. id, 'v')
    if not known then
      return refused
    end
    return duplicate(id, known_digest, known[1])
  end
end
local lane_state = redis.call('HGET', lanes, lane)
if lane_state and not S.LANE_ACCEPTS_CREATES[lane_state] then
  return refuse('lane_not_accepting', 'lane ' .. lane .. ' is ' .. lane_state .. ' and takes no new work',
    'lane', lane, 'state', lane_state)
end
if route_ok == 0 then
  return refuse('route_unregistered')
end
if payload and redis.call('PERSIST', payload) == 0 then
  return refuse('payload_missing')
end

local delayed = delay_until_ms and delay_until_ms > now
local r = {
  vector = delayed and S.DELAYED['waiting_for_delay']['pending_first_attempt'] or S.ELIGIBLE['pending_first_attempt'],
  priority = priority, eligible_since_ms = delayed and delay_until_ms or now,
  created_at_ms = now, run_started_at_ms = now, last_mutation_at_ms = now,
  history_count = 0, lease_epoch = 0, total_attempt_count = 0, retry_count = 0, reclaim_count = 0, replay_count = 0,
  not_before_ms = delayed and delay_until_ms or nil, deadline_at_ms = deadline_at(absolute_ms, relative_ms, now),
}
r.due_kind, r.due_at_ms = timer_of(r)
local set = { 'HSET', execution, 'v', dump(r), 'd', static, 'h', digest, 'j', definition }
if tags then
  set[#set + 1], set[#set + 2] = 't', tags
end
if not payload then
  set[#set + 1] = 'i'
  set[#set + 1] = inline
end
redis.call(unpack(set))
redis.call('ZADD', all, now, uuid)
if not delayed then
  local score = score_of(r)
  redis.call('ZADD', eligible, score, uuid)
  if redis.call('ZRANGE', eligible, 0, 0)[1] == uuid then
    effect_head = score
  end
end
if r.due_at_ms then
  redis.call('ZADD', due, r.due_at_ms, uuid)
  effect_due = r.due_at_ms
end
if idempotency then
  redis.call('SET', idempotency, cmsgpack.pack(uuid, digest, now + window_ms), 'PX', window_ms + 60000)
end
return ok('created', now, S.public[r.vector])
