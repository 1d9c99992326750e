-- Run a finished execution again: retries, takeovers and deadline start over, the result is cleared. `payload` is the
-- result's own key, when it has one. Answers the public state and the count of replays.
-- KEYS: execution eligible due own lost [payload]
-- ARGV: actor:text expected:int?
-- Refuses: execution_not_found execution_not_eligible execution_not_terminal max_replays_exhausted
-- Touches: the key of the result, which it deletes.

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
if expected and r.replay_count ~= expected then
  if r.replay_count == expected + 1 then
    return ok(S.public[r.vector], r.replay_count)
  end
  return refuse('execution_not_eligible', string.format('it was replayed %.0f times', r.replay_count),
    'replay_count', r.replay_count)
end
if S.phase[r.vector] ~= 'terminal' then
  return refuse('execution_not_terminal', false, 'public_state', S.public[r.vector])
end
if r.replay_count >= (r.d.max_replay_count or S.REPLAY_COUNT_DEFAULT) then
  return refuse('max_replays_exhausted', false, 'replay_count', r.replay_count)
end
local has_key = r.result and r.result ~= ''
if has_key and K.payload ~= K.tag .. 'p:' .. r.result then
  return refuse('wrong_payload', false, 'nonce', r.result)
end
local lineage = redis.call('HGET', K.execution, 'l')
lineage = lineage and cmsgpack.unpack(lineage) or {}
lineage[#lineage + 1] = { now, S.outcome[r.vector], r.completed_at_ms or now, actor, r.attempt_index }
if #lineage > S.REPLAY_COUNT_DEFAULT then
  table.remove(lineage, 1)
end

local event = event_of(r, 'replay_initiated', now, nil, nil, actor)
local absolute = r.d.absolute_deadline_ms
if absolute and absolute <= now then
  absolute = nil
end
if has_key then
  redis.call('UNLINK', K.payload)
elseif r.result then
  r.set.r = ''
end
r.result, r.result_type = nil, nil
r.vector = S.ELIGIBLE['pending_replay_attempt']
r.eligible_since_ms, r.run_started_at_ms, r.last_mutation_at_ms = now, now, now
r.deadline_at_ms = deadline_at(absolute, r.d.relative_deadline_ms, now)
r.retry_count, r.reclaim_count, r.replay_count = 0, 0, r.replay_count + 1
r.completed_at_ms, r.retention_due_at_ms, r.frames_trim_at_ms = nil, nil, nil
set_failure(r, nil)
r.set.c, r.set.p, r.set.l = '', '', cmsgpack.pack(lineage)
happened(r, event)
store(K, r)
return ok(S.public[r.vector], r.replay_count)
