-- Let a blocked execution run; it keeps its place in the order. Answers public state and blocking reason.
-- KEYS: execution eligible due own lost
-- ARGV: expected_reason:text?
-- Refuses: execution_not_found execution_not_eligible

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
if not S.UNBLOCKABLE[S.eligibility[r.vector]] then
  return not_eligible(r, 'the execution is not blocked')
end
if expected_reason and S.blocking[r.vector] ~= expected_reason then
  return not_eligible(r, 'the execution is blocked for another reason')
end
r.vector = S.ELIGIBLE[S.attempt[r.vector]]
if r.has_detail then
  r.set.b, r.has_detail = '', nil
end
r.last_mutation_at_ms = now
store(K, r)
return ok(S.public[r.vector], S.blocking[r.vector])
