-- Fail the attempt of an active execution; the retry policy decides whether another follows. Answers `retry_scheduled`
-- with when and the count of retries, or `failed`.
-- KEYS: execution eligible due own lost
-- ARGV: lease_id:uuid? lease_epoch:int? attempt_id:uuid? lane:text? route:text? digest:text actor:text class:text category:text message:text
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease

if not S.FAILURE_CLASSES[class] then
  return refuse('invalid_input', 'there is no such class of failures', 'field', 'failure_class')
end
local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local first = repeated(K, r, 'execution.fail', lease_id, lease_epoch, attempt_id, digest)
if first then
  return first
end
refused = guard(K, r, now, lease_id, lease_epoch, attempt_id, lane, route)
if refused then
  return refused
end
if fail_with(K, r, now, class, category, message, actor) then
  local at = r.not_before_ms or now
  answered(r, 'execution.fail', lease_id, lease_epoch, digest, 'retry_scheduled', at, r.retry_count)
  store(K, r)
  return ok('retry_scheduled', at, r.retry_count)
end
answered(r, 'execution.fail', lease_id, lease_epoch, digest, 'failed')
store(K, r)
return ok('failed')
