-- Extend a live lease. Answers with when it runs out, and its TTL, the namespace and instance of its worker.
-- KEYS: execution eligible due own lost
-- ARGV: lease_id:uuid lease_epoch:int attempt_id:uuid lane:text? route:text? ttl_ms:int?
-- Refuses: execution_not_found execution_not_active lease_revoked lease_expired stale_lease

local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
refused = guard(K, r, now, lease_id, lease_epoch, attempt_id, lane, route)
if refused then
  return refused
end
r.ttl_ms = ttl_ms or r.ttl_ms
r.expires_at_ms, r.renewed_at_ms, r.last_mutation_at_ms = now + r.ttl_ms, now, now
happened(r, event_of(r, 'renewed', now))
store(K, r)
return ok(r.expires_at_ms, r.ttl_ms, r.d.namespace, r.worker_instance)
