-- Lease the best eligible executions of one route in this partition, or answer with those that a claim holds already.
-- KEYS: eligible due own lost lanes
-- ARGV: mode:text lane:text namespace:text worker_id:text worker_instance:text ttl_ms:int claim_id:uuid? most:int bound:number? room:int ids:rest
-- Refuses: slot_migrating
-- Touches: derived keys, the executions that the index names (`x:`, members) and their inputs (`p:`), each read under
--   pcall before the first write. `ids` are lease and attempt ids in turn. `mode` is `claim` or `repeat`. Nothing is
--   leased whose score is past `bound`. Answers the score of the index's head, the leases (eight values each), how much
--   the index has, and 1 when the lane gives nothing out.

-- Read an execution and its input: fields v d w z j t i, and the input when it has a key of its own and there is room.
local function read(uuid, space)
  local fields, refused = touch('HMGET', K.tag .. 'x:' .. uuid, 'v', 'd', 'w', 'z', 'j', 't', 'i')
  if not fields then
    return nil, refused
  end
  if not fields[1] then
    return false
  end
  local r = opened(uuid, fields[1], fields[2], fields[3])
  r.z, r.fields, r.payload = fields[4], fields, fields[7]
  if r.d.input then
    if r.d.input_bytes <= space then
      r.payload, refused = touch('GET', K.tag .. 'p:' .. r.d.input)
      if refused then
        return nil, refused
      end
    else
      r.payload = false
    end
  end
  return r
end

local function sequence_of(r)
  if r.attempt_epoch == r.lease_epoch and mode == 'claim' then
    return 0
  end
  local stream = redis.call('HGET', K.tag .. 'x:' .. r.uuid, 's' .. string.format('%.0f', r.attempt_index))
  return stream and select(2, cmsgpack.unpack(stream)) or 0
end

local found = {}
local function answer(r)
  local fields = r.fields
  local at = #found
  found[at + 1], found[at + 2], found[at + 3] = r.uuid, r.packed or fields[1], fields[5]
  found[at + 4], found[at + 5] = fields[6] or false, r.d.input_type
  found[at + 6], found[at + 7] = r.payload, r.d.input or false
  found[at + 8] = sequence_of(r)
end

if mode == 'repeat' then
  local holder = namespace .. ' ' .. worker_instance .. ' '
  local owned = redis.call('ZRANGEBYLEX', K.own, '[' .. holder, '(' .. holder .. 'g')
  for _, member in ipairs(owned) do
    local r, refused = read(string.sub(member, -36), room)
    if refused then
      return refused
    end
    if r and r.claim_id == claim_id and r.expires_at_ms > now then
      answer(r)
    end
  end
  return ok(false, found)
end

local function rest(closed)
  local head = redis.call('ZRANGE', K.eligible, 0, 0, 'WITHSCORES')[2]
  return ok(head and tonumber(head) or false, found, head and redis.call('ZCARD', K.eligible) or 0, closed)
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
  local r, refused = read(uuid, math.min(space, 65536))
  if refused then
    return refused
  end
  if not r or not r.was_ready then
    wrong[#wrong + 1] = uuid
  else
    chosen[#chosen + 1] = r
    space = space - r.d.input_bytes
    if space <= 0 then
      break
    end
  end
end
for _, uuid in ipairs(wrong) do
  redis.call('ZREM', K.eligible, uuid)
end
local at = 1
for _, r in ipairs(chosen) do
  local instant = since(r, now)
  if not end_instead(r, instant) then
    take(r, r.z, instant, worker_id, worker_instance, ttl_ms, claim_id, ids[at], ids[at + 1])
    at = at + 2
    store(K, r)
    answer(r)
  else
    store(K, r)
  end
end
return rest(0)
