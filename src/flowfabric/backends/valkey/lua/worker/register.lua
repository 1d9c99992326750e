-- Register a worker instance, or refresh it, and publish the defaults of its kinds. `details` is JSON of what it can
-- run; `published` holds pairs of kind and JSON.
-- KEYS: meta workers workerdue defaults
-- ARGV: namespace:text worker_instance:text worker_id:text liveness_ttl_ms:int details:text published:rest
-- Refuses: invalid_input instance_reassigned
-- Touches: tells the catalog and the due channel
if #published % 2 ~= 0 then
  return refuse('invalid_input', 'defaults come as pairs of kind and text')
end
-- Whatever could fail is read before the first write.
if #published > 0 and not tonumber(redis.call('HGET', meta, 'catalog') or '0') then
  return refuse('invalid_input', 'the catalog has no version', 'field', 'meta')
end
local known = load_worker(workers, worker_instance)
local status, registered_at_ms = 'registered', now
if known and is_alive(known, now) then
  if known.worker_id ~= worker_id then
    return refuse(
      'instance_reassigned',
      'instance ' .. worker_instance .. ' is registered by worker ' .. known.worker_id
        .. ': every process needs its own instance name'
    )
  end
  status, registered_at_ms = 'refreshed', known.registered_at_ms
end
local before = {}
for i = 1, #published, 2 do
  before[i] = redis.call('HGET', defaults, namespace .. ' ' .. published[i])
end
local worker = {
  worker_id = worker_id,
  liveness_ttl_ms = liveness_ttl_ms,
  registered_at_ms = registered_at_ms,
  details = details,
}
refresh_worker(worker, now)
store_worker(workers, workerdue, tag, namespace, worker_instance, worker)
local reply = ok(status, worker.expires_at_ms)
for i = 1, #published, 2 do
  local kind, text = published[i], published[i + 1]
  if before[i] ~= text then
    local at = count_change(meta)
    redis.call('HSET', defaults, namespace .. ' ' .. kind, text)
    tell_change(meta, tag, at, 'defaults', namespace, kind, text)
    reply[#reply + 1] = at
    reply[#reply + 1] = kind
    reply[#reply + 1] = text
  end
end
return reply
