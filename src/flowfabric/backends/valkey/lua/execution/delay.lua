-- Give the lease back and continue the same attempt at an instant; one in the past means now. Answers the public state
-- and the instant, if it is ahead.
-- KEYS: execution eligible due own lost
-- ARGV: lease_id:uuid? lease_epoch:int? attempt_id:uuid? lane:text? route:text? digest:text actor:text delay_until_ms:int
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease

local later = delay_until_ms > now
local vector = later and S.DELAYED['waiting_for_delay']['attempt_interrupted'] or S.ELIGIBLE['attempt_interrupted']
return pause(K, now, 'execution.delay', digest, 'worker_delay', actor,
  { lease_id, lease_epoch, attempt_id, lane, route }, vector, later and delay_until_ms or nil)
