-- Mark an overdue registration as lapsed; forget one that lapsed long ago. An index entry that disagrees with its
-- record is put right.
-- KEYS: workers workerdue
-- ARGV: namespace:text worker_instance:text
-- Touches: tells the due channel
local worker = load_worker(workers, worker_instance)
if not worker then
  redis.call('ZREM', workerdue, namespace .. ' ' .. worker_instance)
  return ok('not_due')
end
local due_ms = liveness_due(worker)
if due_ms > now then
  local indexed = redis.call('ZSCORE', workerdue, namespace .. ' ' .. worker_instance)
  if tonumber(indexed or '-1') ~= due_ms then
    redis.call('ZADD', workerdue, due_ms, namespace .. ' ' .. worker_instance)
  end
  return ok('not_due')
end
if worker.lapsed_at_ms then
  remove_worker(workers, workerdue, namespace, worker_instance)
  return ok('removed')
end
worker.lapsed_at_ms = worker.expires_at_ms
store_worker(workers, workerdue, tag, namespace, worker_instance, worker)
return ok('lapsed')
