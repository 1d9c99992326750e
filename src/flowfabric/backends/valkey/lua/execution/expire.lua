-- Apply an attempt timeout (a failure under the retry policy) or the deadline (the end), if it is due. Answers what was
-- done.
-- KEYS: execution eligible due own lost
-- ARGV: reason:text
-- Refuses: execution_not_found

if reason ~= 'attempt_timeout' and reason ~= 'execution_deadline' then
  return refuse('invalid_input', 'nothing expires for this reason', 'field', 'reason')
end
local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
if S.phase[r.vector] == 'terminal' then
  return ok('already_terminal')
end
if reason == 'attempt_timeout' then
  if S.ownership[r.vector] ~= 'leased' or not r.timeout_at_ms or r.timeout_at_ms > now then
    return ok('not_due')
  end
  local retrying = fail_with(K, r, now, 'timeout', 'attempt_timeout',
    'the attempt ran longer than its policy allows', 'system_timeout')
  store(K, r)
  return ok(retrying and 'retry_scheduled' or 'failed')
end
if not r.deadline_at_ms or r.deadline_at_ms > now then
  return ok('not_due')
end
expire_at_deadline(r, now)
store(K, r)
return ok('expired')
