-- Count renewals of leases as heartbeats; instances that are not registered, or lapsed, stay so.
-- KEYS: workers workerdue
-- ARGV: namespace:text instances:rest
-- Touches: tells the due channel
for _, instance in ipairs(instances) do
  local worker = load_worker(workers, instance)
  if worker and is_alive(worker, now) then
    refresh_worker(worker, now)
    store_worker(workers, workerdue, tag, namespace, instance, worker)
  end
end
return ok()
