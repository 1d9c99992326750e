-- Make a delayed execution eligible, if it is due. Answers what was done.
-- KEYS: execution eligible due own lost
-- ARGV:
-- Refuses: execution_not_found

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
if S.eligibility[r.vector] ~= 'not_eligible_until_time' then
  return ok('not_delayed')
end
if r.not_before_ms and r.not_before_ms > now then
  return ok('not_due')
end
r.vector = S.ELIGIBLE[S.attempt[r.vector]]
r.not_before_ms, r.last_mutation_at_ms = nil, now
store(K, r)
return ok('promoted')
