-- Append the frames that are new to the stream of the live attempt; a gap is refused.
-- KEYS: execution due [durable] [summary] [lossy]
-- ARGV: attempt_index:int lease_id:uuid lease_epoch:int attempt_id:uuid lane:text? route:text? first:int seen:int? document:text? fault:text? fault_message:text frames:rest
-- Refuses: execution_not_found stream_closed stale_owner_cannot_append frame_sequence_gap stale_version invalid_input summary_too_large
-- Touches: the fields `s<i>` and `y<i>` of the execution; its channel. `frames` are mode (`d`, `s`, or `b` and its ttl),
--   packed header and payload in turn. With summary frames among them, `seen` is the last sequence that the caller
--   merged upon and `document` what came out, or `fault` why nothing did.

local count = #frames / 3
if count < 1 or count ~= math.floor(count) then
  return malformed('frames')
end
local uuid = string.sub(K.execution, -36)
local index = string.format('%.0f', attempt_index)
local durable_key, summary_key, lossy_key = stream_keys(tag, uuid, index)
if (durable and durable ~= durable_key) or (summary and summary ~= summary_key) or (lossy and lossy ~= lossy_key) then
  return malformed('keys')
end
local into = {}
for at = 1, #frames, 3 do
  local mode = frames[at]
  local key = mode == 'd' and durable or mode == 's' and seen and summary
    or #mode < 10 and string.find(mode, '^b%d+$') and lossy
  if not key then
    return malformed('frames')
  end
  into[#into + 1] = key
end

local fields = redis.call('HMGET', K.execution, 'v', 'd', 's' .. index)
if not fields[1] then
  return refuse('execution_not_found', false, 'execution_id', tag .. uuid)
end
local r = opened(uuid, fields[1], fields[2], '')
now = since(r, now)
if S.phase[r.vector] ~= 'active' then
  return refuse('stream_closed', false, 'public_state', S.public[r.vector])
end
if not r.lease_id or not r.attempt_id or S.ownership[r.vector] ~= 'leased' or r.expires_at_ms <= now
  or r.attempt_index ~= attempt_index or r.attempt_id ~= attempt_id
  or r.lease_id ~= lease_id or r.lease_epoch ~= lease_epoch
  or (lane and lane ~= r.d.lane) or (route and route ~= r.d.route) then
  return refuse('stale_owner_cannot_append')
end
if r.stream_closed_at_ms then
  return refuse('stream_closed', false, 'closed_at_ms', r.stream_closed_at_ms)
end
local s = fields[3] and load_stream(fields[3]) or new_stream()
local expected = s.last_sequence + 1
if first > expected then
  return refuse('frame_sequence_gap',
    string.format('the next frame\'s sequence is %.0f, not %.0f', expected, first), 'expected', expected)
end
local duplicates = math.min(expected - first, count)
local function reply()
  return ok(s.last_ms, s.last_seq, s.last_sequence, s.frame_count, duplicates, s.version)
end
if duplicates == count then
  return reply()
end
if seen and seen ~= s.last_sequence then
  return refuse('stale_version')
end
if fault == 'summary_too_large' then
  return refuse('summary_too_large', fault_message, 'limit_bytes', S.SUMMARY_BYTES_MAX)
elseif fault then
  return refuse('invalid_input', fault_message, 'field', 'payload')
end

if seen and not document then
  for at = duplicates + 1, count do
    if frames[at * 3 - 2] == 's' then
      return malformed('document')
    end
  end
end

local added = { d = 0, s = 0, b = 0 }
local ttl
for at = duplicates + 1, count do
  local mode = string.sub(frames[at * 3 - 2], 1, 1)
  if now > s.last_ms then
    s.last_ms, s.last_seq = now, 0
  else
    s.last_seq = s.last_seq + 1
  end
  redis.call('XADD', into[at], string.format('%.0f-%.0f', s.last_ms, s.last_seq),
    'h', frames[at * 3 - 1], 'p', frames[at * 3])
  added[mode] = added[mode] + 1
  if mode == 'b' then
    ttl = tonumber(string.sub(frames[at * 3 - 2], 2))
  end
end
s.frame_count = s.frame_count + count - duplicates
s.last_sequence = first + count - 1
local set = { 'HSET', K.execution, 's' .. index, '' }
if added.s > 0 then
  s.first_applied_at_ms = s.version > 0 and s.first_applied_at_ms or now
  s.version, s.last_updated_at_ms = s.version + added.s, now
  set[5], set[6] = 'y' .. index, document
end
if ttl then
  -- The smoothed rate of lossy frames says how many of them their ttl justifies keeping.
  local rate
  if not s.rate_at_ms then
    rate = S.BEST_EFFORT_FRAMES_MIN / (ttl / 1000 * 2)
  else
    local elapsed = math.max(now - s.rate_at_ms, 1) / 1000
    local alpha = S.BEST_EFFORT_RATE_ALPHA
    rate = alpha * (added.b / elapsed) + (1 - alpha) * s.append_rate
  end
  local wanted = math.ceil(rate * ttl / 1000 * 2)
  s.append_rate, s.rate_at_ms = rate, now
  s.best_effort_cap = math.max(S.BEST_EFFORT_FRAMES_MIN, math.min(S.BEST_EFFORT_FRAMES_MAX, wanted))
  s.expires_at_ms = now + 2 * ttl
end
local function bound(key, kept, most, lasting)
  if kept <= most then
    return kept
  end
  if lasting then
    local ms, seq = stream_place(cut_stream(key, kept, kept - most))
    if ms > s.trimmed_ms or (ms == s.trimmed_ms and seq > s.trimmed_seq) then
      s.trimmed_ms, s.trimmed_seq = ms, seq
    end
  else
    redis.call('XTRIM', key, 'MAXLEN', most)
  end
  return most
end
s.durable_kept = bound(durable, s.durable_kept + added.d, r.d.frames_maxlen or S.STREAM_MAXLEN_DEFAULT, true)
s.summary_kept = bound(summary, s.summary_kept + added.s, S.SUMMARY_FRAMES_KEPT, true)
s.best_effort_kept = bound(lossy, s.best_effort_kept + added.b, s.best_effort_cap, false)
if s.durable_kept + s.summary_kept > 0 then
  s.expires_at_ms = nil
end
set[4] = dump_stream(s)
redis.call(unpack(set))
if s.expires_at_ms and (not r.stream_due_at_ms or s.expires_at_ms < r.stream_due_at_ms) then
  r.stream_due_at_ms = s.expires_at_ms
  store(K, r)
end
redis.pcall('SPUBLISH', tag .. 'ch:' .. uuid, '1')
return reply()
