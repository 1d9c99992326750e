-- Lease the best eligible executions of one route in this partition, or answer with those that a claim holds already.
-- KEYS: eligible due own lost lanes
-- ARGV: mode:text lane:text namespace:text worker_id:text worker_instance:text ttl_ms:int claim_id:uuid? most:int bound:number? room:int ids:rest
-- Refuses: invalid_input slot_migrating
-- Touches: derived keys, the executions that the index names (`x:`, members) and their inputs (`p:`), each read under
--   pcall before the first write. `ids` are lease and attempt ids in turn. `mode` is `claim` or `repeat`. Nothing is
--   leased whose score is past `bound`. Answers the score of the index's head, the leases (eight values each), how much
--   the index has, and 1 when the lane gives nothing out.

-- Read an execution and its input: fields v d j t i, and the input when it has a key of its own and there is room.
-- Nil and a refusal, or false when there is none.
local function read(uuid, space)
  local key = K.tag .. 'x:' .. uuid
  local fields, refused = touch('HMGET', key, 'v', 'd', 'j', 't', 'i')
  if not fields then
    return nil, refused
  end
  if not fields[1] then
    -- Where a slot is moving to, a key alone that is not there yet is like none at all; two keys are not.
    fields, refused = touch('EXISTS', key, K.own)
    return fields and false, refused
  end
  local e = {
    uuid = uuid, key = key, fields = fields, d = load_static(fields[2]), payload = fields[5], packed = fields[1],
    r = false, failure = false,
  }
  if e.d.input then
    if e.d.input_bytes <= space then
      e.payload, refused = touch('GET', K.tag .. 'p:' .. e.d.input)
      if refused then
        return nil, refused
      end
    else
      e.payload = false
    end
  end
  return e
end

-- Load the record of what was read, and what its latest attempt left.
local function record_of(e)
  local left = redis.call('HMGET', e.key, 'w', 'z')
  e.r, e.failure = opened(e.uuid, e.packed, e.fields[2], left[1]), left[2]
  return e.r
end

local function sequence_of(e)
  local r = e.r
  if not r or (r.attempt_epoch == r.lease_epoch and mode == 'claim') then
    return 0
  end
  local stream = redis.call('HGET', e.key, 's' .. string.format('%.0f', r.attempt_index))
  return stream and select(2, cmsgpack.unpack(stream)) or 0
end

local found = {}
local function answer(e)
  local fields, d = e.fields, e.d
  local at = #found
  found[at + 1], found[at + 2], found[at + 3] = e.uuid, e.packed, fields[3]
  found[at + 4], found[at + 5] = fields[4] or false, d.input_type
  found[at + 6], found[at + 7] = e.payload, d.input or false
  found[at + 8] = sequence_of(e)
end

if mode == 'repeat' then
  local holder = namespace .. ' ' .. worker_instance .. ' '
  local owned = redis.call('ZRANGEBYLEX', K.own, '[' .. holder, '(' .. holder .. 'g')
  for _, member in ipairs(owned) do
    local e, refused = read(string.sub(member, -36), room)
    if refused then
      return refused
    end
    local r = e and record_of(e)
    if r and r.claim_id == claim_id and r.expires_at_ms > now then
      answer(e)
    end
  end
  return ok(false, found)
end

local function rest(closed)
  local head = redis.call('ZRANGE', K.eligible, 0, 0, 'WITHSCORES')[2]
  return ok(head and tonumber(head) or false, found, head and redis.call('ZCARD', K.eligible) or 0, closed)
end

if mode ~= 'claim' or most < 1 or most > S.CLAIM_TASKS_MAX or #ids ~= 2 * most then
  return malformed('ids')
end
for _, id in ipairs(ids) do
  if not is_uuid(id) then
    return malformed('ids')
  end
end
local state = redis.call('HGET', K.lanes, lane)
if state and not S.LANE_ACCEPTS_CLAIMS[string.match(state, '^[a-z]+')] then
  return rest(1)
end
local members
if bound then
  members = redis.call('ZRANGE', K.eligible, '-inf', bound, 'BYSCORE', 'LIMIT', 0, most)
else
  members = redis.call('ZRANGE', K.eligible, 0, most - 1)
end
local chosen, wrong, space = {}, {}, room
for _, uuid in ipairs(members) do
  local e, refused = read(uuid, math.min(space, 65536))
  if refused then
    return refused
  end
  if e and (e.d.attempt_timeout_ms or not is_fresh(e.packed)) then
    e = record_of(e).was_ready and e
  end
  if not e then
    wrong[#wrong + 1] = uuid
  else
    chosen[#chosen + 1] = e
    space = space - e.d.input_bytes
    if space <= 0 then
      break
    end
  end
end
gather_entries(K)
for _, uuid in ipairs(wrong) do
  push(K.entries.ready_rem, uuid)
end
local at = 1
for _, e in ipairs(chosen) do
  local r = e.r
  local instant = r and since(r, now)
  if not r then
    e.packed = usual_take(K, e.key, e.uuid, e.packed, e.d, now, worker_id, worker_instance, ttl_ms, claim_id, ids[at],
      ids[at + 1])
  elseif not end_instead(r, instant) then
    take(r, e.failure, instant, worker_id, worker_instance, ttl_ms, claim_id, ids[at], ids[at + 1])
    store(K, r)
    e.packed = r.packed
  else
    store(K, r)
    e.packed = nil
  end
  if e.packed then
    at = at + 2
    answer(e)
  end
end
write_entries(K)
return rest(0)
