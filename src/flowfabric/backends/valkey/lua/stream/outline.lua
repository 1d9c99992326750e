-- Answer the ids and headers of an attempt's frames after a place, without their payloads: per key, id and header in turn.
-- KEYS: execution [durable] [summary] [lossy]
-- ARGV: after:text most:int
-- Refuses: invalid_input

local ms, seq = string.match(after, '^%((%d+)%-(%d+)$')
if after ~= '-' and not (ms and #ms < 17 and #seq < 17) then
  return malformed('after')
end
local outlines = {}
for at, key in ipairs({ durable or false, summary or false, lossy or false }) do
  local found = {}
  for _, entry in ipairs(key and redis.call('XRANGE', key, after, '+', 'COUNT', most) or {}) do
    found[#found + 1] = entry[1]
    found[#found + 1] = entry[2][2]
  end
  outlines[at] = found
end
return ok(outlines)
