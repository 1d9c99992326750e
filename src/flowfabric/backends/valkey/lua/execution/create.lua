-- Create executions of one route, eligible at once or later. `creates` has ten values for each: the digest, which is what
-- makes two creates the same; the packed definition for functions; that for readers; tags; the input; priority;
-- delay_until_ms; window_ms; 1 when the next idempotency key is its own; 1 when the next staged payload is its input.
-- `route_ok` 1 when the caller knows the route to be registered. Answers a list for each: 1 and `created` with the instant
-- and the public state, or 1 and `duplicate` with id, public state and the instant of creation, or a refusal.
-- KEYS: eligible due all lanes execution... idempotency... payload...
-- ARGV: route_ok:flag creates:rest
-- Refuses: idempotency_conflict lane_not_accepting
-- Touches: the staged inputs, which it adopts; derived keys, the executions that idempotency keys name.

if #executions < 1 or #executions > S.CREATE_MANY_MAX or #creates ~= #executions * 10 then
  return malformed('creates')
end
local rid = string.sub(eligible, #tag + 3)
local given, seen, named, staged = {}, {}, 0, 0
for number, key in ipairs(executions) do
  local at = number * 10 - 10
  local static, tags, delay = creates[at + 2], creates[at + 4], creates[at + 7]
  local d = read_static(static)
  if not d or d.rid ~= rid or seen[key] or creates[at + 1] == '' then
    return refuse('invalid_input', 'malformed definition of an execution', 'field', 'static')
  end
  local c = {
    key = key, uuid = string.sub(key, -36), digest = creates[at + 1], static = static, definition = creates[at + 3],
    tags = tags ~= '' and tags, lane = d.lane,
    absolute_ms = d.absolute_deadline_ms, relative_ms = d.relative_deadline_ms,
  }
  c.priority, c.window_ms = is_integer(creates[at + 6]), is_integer(creates[at + 8])
  c.delay_until_ms = delay ~= '' and is_integer(delay)
  if not c.priority or not c.window_ms or (delay ~= '' and not c.delay_until_ms) then
    return malformed('creates')
  end
  seen[key] = true
  if creates[at + 9] == '1' then
    named = named + 1
    c.idempotency = idempotencys[named]
  end
  if creates[at + 10] == '1' then
    staged = staged + 1
    c.payload = payloads[staged]
  else
    c.inline = creates[at + 5]
  end
  if c.payload ~= (d.input and tag .. 'p:' .. d.input) or (c.idempotency and seen[c.idempotency]) then
    return malformed('payload')
  end
  if c.idempotency then
    seen[c.idempotency] = true
  end
  given[number] = c
end
if named ~= #idempotencys or staged ~= #payloads then
  return malformed('keys')
end

-- Everything is read before anything is written.
for _, c in ipairs(given) do
  local known, refused = touch('HMGET', c.key, 'v', 'h')
  if not known then
    return refused
  end
  c.record, c.known_digest, c.known_uuid = known[1], known[2], known[1] and c.uuid
  local entry = not c.record and c.idempotency and redis.call('GET', c.idempotency)
  if entry then
    local uuid, digest, expires_at = cmsgpack.unpack(entry)
    if expires_at > now then
      known, refused = touch('HMGET', tag .. 'x:' .. uuid, 'v')
      if not known then
        return refused
      end
      c.record, c.known_digest, c.known_uuid = known[1], digest, uuid
    end
  end
end

local states = {}
local function is_accepting(lane)
  if states[lane] == nil then
    states[lane] = redis.call('HGET', lanes, lane)
  end
  return not states[lane] or S.LANE_ACCEPTS_CREATES[states[lane]]
end

local scores, heads, everything, timers = {}, {}, {}, {}
local function create(c)
  if c.known_uuid then
    if c.known_digest ~= c.digest then
      return refuse('idempotency_conflict', false, 'execution_id', tag .. c.known_uuid)
    end
    local known = c.record and load(c.record)
    if not known then
      return { 1, false, false, 'duplicate', tag .. c.known_uuid }
    end
    return { 1, false, false, 'duplicate', tag .. c.known_uuid, S.public[known.vector], known.created_at_ms }
  end
  if not is_accepting(c.lane) then
    local state = states[c.lane]
    return refuse('lane_not_accepting', 'lane ' .. c.lane .. ' is ' .. state .. ' and takes no new work',
      'lane', c.lane, 'state', state)
  end
  if route_ok == 0 then
    return refuse('route_unregistered')
  end
  if c.payload and redis.call('PERSIST', c.payload) == 0 then
    return refuse('payload_missing')
  end
  local packed, public, score, due_at_ms = created(c, now)
  if c.tags and c.inline then
    redis.call('HSET', c.key, 'v', packed, 'd', c.static, 'h', c.digest, 'j', c.definition, 'i', c.inline, 't', c.tags)
  elseif c.inline then
    redis.call('HSET', c.key, 'v', packed, 'd', c.static, 'h', c.digest, 'j', c.definition, 'i', c.inline)
  elseif c.tags then
    redis.call('HSET', c.key, 'v', packed, 'd', c.static, 'h', c.digest, 'j', c.definition, 't', c.tags)
  else
    redis.call('HSET', c.key, 'v', packed, 'd', c.static, 'h', c.digest, 'j', c.definition)
  end
  push(everything, now, c.uuid)
  if score then
    push(scores, score, c.uuid)
    heads[c.uuid] = score
  end
  if due_at_ms then
    push(timers, due_at_ms, c.uuid)
    effect_due = effect_due and math.min(effect_due, due_at_ms) or due_at_ms
  end
  if c.idempotency then
    redis.call('SET', c.idempotency, cmsgpack.pack(c.uuid, c.digest, now + c.window_ms), 'PX', c.window_ms + 60000)
  end
  return { 1, false, false, 'created', now, public }
end

local answers = {}
for number, c in ipairs(given) do
  answers[number] = create(c)
end
if #everything > 0 then
  redis.call('ZADD', all, unpack(everything))
end
if #scores > 0 then
  redis.call('ZADD', eligible, unpack(scores))
  effect_head = heads[redis.call('ZRANGE', eligible, 0, 0)[1]] or false
end
if #timers > 0 then
  redis.call('ZADD', due, unpack(timers))
end
return ok(unpack(answers))
