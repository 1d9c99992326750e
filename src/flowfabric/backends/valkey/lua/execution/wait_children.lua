-- Give the lease back until all it depends on is done; an execution outside a flow depends on nothing, so the same
-- attempt is eligible at once. Answers the public state.
-- KEYS: execution eligible due own lost
-- ARGV: lease_id:uuid? lease_epoch:int? attempt_id:uuid? lane:text? route:text? actor:text
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease

return pause(K, now, 'execution.wait_children', '', 'waiting_children', actor,
  { lease_id, lease_epoch, attempt_id, lane, route }, S.ELIGIBLE['attempt_interrupted'], nil)
