-- Take an instance out of the registry.
-- KEYS: workers workerdue
-- ARGV: namespace:text worker_instance:text
return ok(remove_worker(workers, workerdue, namespace, worker_instance) and 1 or 0)
