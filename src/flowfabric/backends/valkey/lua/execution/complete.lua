-- End active executions of one route with success. `commands` has ten values for each of the executions: lease_id,
-- lease_epoch, attempt_id, lane, route, digest, actor, result_type, 1 when its result is the next staged payload, and
-- else the result itself. Answers one list for each: 1 and the instant, or a refusal.
-- KEYS: eligible due own lost execution... payload...
-- ARGV: commands:rest
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease
-- Touches: the staged results, which it adopts.

if #executions < 1 or #executions > S.CREATE_MANY_MAX or #commands ~= #executions * 10 then
  return malformed('commands')
end
local given, seen, staged = {}, {}, 0
for number, key in ipairs(executions) do
  local lease_id, lease_epoch, attempt_id, lane, route, digest, actor, media, is_staged, result =
    unpack(commands, number * 10 - 9, number * 10)
  local c = {
    lease_id ~= '' and lease_id or nil, lease_epoch ~= '' and is_integer(lease_epoch) or nil,
    attempt_id ~= '' and attempt_id or nil, lane ~= '' and lane or nil, route ~= '' and route or nil, digest,
    actor ~= '' and actor or nil, media ~= '' and media or nil, is_staged, result,
  }
  if seen[key] or (c[1] and #c[1] ~= 36) or (c[3] and #c[3] ~= 36) or (lease_epoch ~= '' and not c[2]) then
    return malformed('commands')
  end
  seen[key] = true
  if c[9] == '1' then
    staged = staged + 1
    c[9] = payloads[staged]
    if not c[9] or not c[8] then
      return malformed('payload')
    end
  elseif c[9] ~= '0' then
    return malformed('commands')
  else
    c[9] = nil
  end
  given[number] = c
end
if staged ~= #payloads then
  return malformed('payload')
end

-- Everything is read before anything is written.
local stored, answers = {}, {}
for number, key in ipairs(executions) do
  stored[number] = redis.call('HMGET', key, 'v', 'd', 'w')
end
K.rid = string.sub(eligible, #tag + 3)
gather_entries(K)

local function complete(key, c, fields)
  if fields[1] and not fields[3] and not c[9] then
    local at = usual_complete(K, key, fields[1], fields[2], now, c)
    if at then
      return { 1, false, false, at }
    end
  end
  K.execution = key
  local r, refused = opened_for(K, fields)
  if not r then
    return refused
  end
  local at = since(r, now)
  local first = repeated(K, r, 'execution.complete', c[1], c[2], c[3], c[6])
  if first then
    return first
  end
  refused = guard(K, r, at, c[1], c[2], c[3], c[4], c[5])
  if refused then
    return refused
  end
  if c[9] and redis.call('PERSIST', c[9]) == 0 then
    return refuse('payload_missing')
  end
  local event = event_of(r, 'released', at, 'completed', 'success', c[7] or '')
  finish(r, 'success', at)
  happened(r, event)
  if c[9] then
    r.result, r.result_type = string.sub(c[9], #tag + 3), c[8]
  elseif c[8] then
    r.result, r.result_type = '', c[8]
    r.set.r = c[10]
  end
  answered(r, 'execution.complete', c[1], c[2], c[6], at)
  store(K, r)
  return { 1, false, false, at }
end

for number, key in ipairs(executions) do
  answers[number] = complete(key, given[number], stored[number])
end
write_entries(K)
return ok(unpack(answers))
