-- The stream of one attempt beside its frames: field `s<i>` of the execution, in the order of `load_stream`. Its three
-- native streams (durable, summary, best-effort) share one sequence of ids.

local function new_stream()
  return {
    frame_count = 0, last_sequence = 0, last_ms = 0, last_seq = 0,
    durable_kept = 0, summary_kept = 0, best_effort_kept = 0,
    append_rate = 0, best_effort_cap = S.BEST_EFFORT_FRAMES_MIN,
    trimmed_ms = 0, trimmed_seq = 0, version = 0, first_applied_at_ms = 0, last_updated_at_ms = 0,
  }
end

local function stream_place(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- Remove the `count` oldest frames of a native stream that holds `kept`, and return the id of the newest removed.
local function cut_stream(key, kept, count)
  if count > 1 then
    redis.call('XTRIM', key, 'MAXLEN', kept - count + 1)
  end
  local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  redis.call('XTRIM', key, 'MAXLEN', kept - count)
  return oldest and oldest[1]
end

-- Note in a stream's record that all its frames are gone.
local function empty_stream(s)
  if s.durable_kept + s.summary_kept > 0 then
    s.trimmed_ms, s.trimmed_seq = s.last_ms, s.last_seq
  end
  s.durable_kept, s.summary_kept, s.best_effort_kept, s.expires_at_ms = 0, 0, 0, nil
end

local function stream_keys(tag, uuid, index)
  local rest = uuid .. ':' .. index
  return tag .. 'sd:' .. rest, tag .. 'ss:' .. rest, tag .. 'sb:' .. rest
end
