-- Keep a registration alive; one that lapsed must be made again.
-- KEYS: workers workerdue
-- ARGV: namespace:text worker_instance:text
-- Refuses: worker_not_registered
-- Touches: tells the due channel
local worker = load_worker(workers, worker_instance)
if not worker or not is_alive(worker, now) then
  return refuse('worker_not_registered')
end
refresh_worker(worker, now)
store_worker(workers, workerdue, tag, namespace, worker_instance, worker)
return ok(worker.expires_at_ms)
