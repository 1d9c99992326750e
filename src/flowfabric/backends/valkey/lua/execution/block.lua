-- Hold an eligible execution back; blocking it again for the same reason changes nothing. Answers public state and
-- blocking reason.
-- KEYS: execution eligible due own lost
-- ARGV: reason:text detail:text
-- Refuses: execution_not_found execution_not_active execution_not_eligible invalid_blocking_reason

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local phase = S.phase[r.vector]
if phase == 'terminal' then
  return not_active(r)
end
local runnable = phase == 'runnable'
if runnable and S.BLOCKED_BY_REASON[reason] and S.blocking[r.vector] == reason then
  return ok(S.public[r.vector], reason)
end
if not runnable or S.eligibility[r.vector] ~= 'eligible_now' then
  return not_eligible(r, 'only an eligible execution can be blocked')
end
if not S.BLOCKED_BY_REASON[reason] then
  return refuse('invalid_blocking_reason', false, 'reason', reason)
end
r.vector = S.BLOCKED[reason][S.attempt[r.vector]]
r.set.b, r.has_detail = detail, detail ~= '' or nil
r.grant_expires_at_ms, r.last_mutation_at_ms = nil, now
store(K, r)
return ok(S.public[r.vector], reason)
