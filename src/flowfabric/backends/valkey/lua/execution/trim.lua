-- Delete what retention says: a finished execution, its frames, or the frames of lossy streams that expired.
-- KEYS: execution due all
-- ARGV: start:int
-- Refuses: execution_not_found slot_migrating
-- Touches: derived keys, each read under pcall before the first write: the streams of its attempts and its payloads.
--   Large executions are removed in steps of attempts: the answer `more` says where to go on, and until the last step
--   the record is there and says which frames are gone.

local STEP = 256
local uuid = string.sub(K.execution, -36)
local fields = redis.call('HMGET', K.execution, 'v', 'd')
if not fields[1] then
  return refuse('execution_not_found', false, 'execution_id', tag .. uuid)
end
local r = opened(uuid, fields[1], fields[2], '')
now = since(r, now)
local terminal = S.phase[r.vector] == 'terminal'
local what
if terminal and r.retention_due_at_ms and r.retention_due_at_ms <= now then
  what = 'execution'
elseif terminal and r.frames_trim_at_ms and r.frames_trim_at_ms <= now then
  what = 'frames'
elseif r.stream_due_at_ms and r.stream_due_at_ms <= now then
  what = 'expired_frames'
else
  return ok('not_due')
end

-- Load the streams of attempts `from` to `to`, and the keys that hold frames of those that `wanted` says.
local function streams(from, to, wanted)
  local names = {}
  for index = from, to do
    names[#names + 1] = 's' .. string.format('%.0f', index)
  end
  local found, held = {}, {}
  local stored = #names > 0 and redis.call('HMGET', K.execution, unpack(names)) or {}
  for at, name in ipairs(names) do
    local s = stored[at] and load_stream(stored[at])
    if s and wanted(s) then
      found[#found + 1] = name
      found[#found + 1] = s
      held[#held + 1], held[#held + 2], held[#held + 3] = stream_keys(tag, uuid, string.sub(name, 2))
    end
  end
  return found, held
end

-- Remove frames and note it in their streams' records.
local function drop(found, held)
  if #held == 0 then
    return
  end
  redis.call('UNLINK', unpack(held))
  local set = { 'HSET', K.execution }
  for at = 1, #found, 2 do
    empty_stream(found[at + 1])
    set[#set + 1], set[#set + 2] = found[at], dump_stream(found[at + 1])
  end
  redis.call(unpack(set))
end

local last = r.total_attempt_count - 1
if what == 'expired_frames' then
  local found, held, later = {}, {}, nil
  for from = 0, last, STEP do
    local some, keys = streams(from, math.min(from + STEP - 1, last), function(s)
      if s.expires_at_ms and s.expires_at_ms > now then
        later = math.min(later or s.expires_at_ms, s.expires_at_ms)
      end
      return s.expires_at_ms and s.expires_at_ms <= now and #held < STEP * 3
    end)
    for _, item in ipairs(some) do
      found[#found + 1] = item
    end
    for _, key in ipairs(keys) do
      held[#held + 1] = key
    end
  end
  if #held > 0 then
    local present, refused = touch('EXISTS', unpack(held))
    if not present then
      return refused
    end
  end
  drop(found, held)
  r.stream_due_at_ms = later
  if #held >= STEP * 3 then
    r.stream_due_at_ms = now
  end
  store(K, r)
  if #held == 0 then
    return ok('not_due')
  end
  redis.pcall('SPUBLISH', tag .. 'ch:' .. uuid, '1')
  return ok('frames_deleted')
end

local to = math.min(start + STEP - 1, last)
local found, held = streams(start, to, function(s)
  return s.durable_kept + s.summary_kept + s.best_effort_kept > 0
end)
local payloads = {}
if what == 'execution' and to >= last then
  if r.d.input then
    payloads[1] = tag .. 'p:' .. r.d.input
  end
  if r.result and r.result ~= '' then
    payloads[#payloads + 1] = tag .. 'p:' .. r.result
  end
end
local touched = { 'EXISTS', K.execution }
for _, key in ipairs(held) do
  touched[#touched + 1] = key
end
for _, key in ipairs(payloads) do
  touched[#touched + 1] = key
end
if #touched > 2 then
  local present, refused = touch(unpack(touched))
  if not present then
    return refused
  end
end
if to < last then
  drop(found, held)
  return ok('more', to + 1)
end
if what == 'frames' then
  drop(found, held)
  r.frames_trim_at_ms, r.stream_due_at_ms = nil, nil
  store(K, r)
  redis.pcall('SPUBLISH', tag .. 'ch:' .. uuid, '1')
  return ok('frames_deleted')
end
touched[1] = 'UNLINK'
redis.call(unpack(touched))
redis.call('ZREM', K.due, uuid)
redis.call('ZREM', K.all, uuid)
redis.pcall('SPUBLISH', tag .. 'ch:' .. uuid, '1')
return ok('deleted')
