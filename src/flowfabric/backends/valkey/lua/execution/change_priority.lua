-- Change the priority of an execution that has not ended; its index entry moves with it. Answers the previous one.
-- KEYS: execution eligible due own lost
-- ARGV: priority:int
-- Refuses: execution_not_found execution_not_eligible

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
if S.phase[r.vector] == 'terminal' then
  return not_eligible(r, 'the execution has ended')
end
local previous = r.priority
r.priority, r.last_mutation_at_ms = priority, now
store(K, r)
return ok(previous)
