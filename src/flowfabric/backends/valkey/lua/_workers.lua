-- The worker registry. An instance is stored as one stream of MessagePack values, in the order of `store_worker`.

-- Load an instance, or nil.
local function load_worker(workers, instance)
  local stored = redis.call('HGET', workers, instance)
  if not stored then
    return nil
  end
  local w = {}
  w.worker_id, w.liveness_ttl_ms, w.registered_at_ms, w.last_heartbeat_at_ms, w.expires_at_ms, w.lapsed_at_ms,
    w.details = cmsgpack.unpack(stored)
  return w
end

local function is_alive(w, now)
  return not w.lapsed_at_ms and w.expires_at_ms > now
end

-- When there is something to do about an instance: its heartbeat lapses, or it is forgotten.
local function liveness_due(w)
  return w.lapsed_at_ms and w.lapsed_at_ms + S.WORKER_KEPT_AFTER_LAPSE_MS or w.expires_at_ms
end

local function refresh_worker(w, now)
  w.last_heartbeat_at_ms, w.expires_at_ms = now, now + w.liveness_ttl_ms
end

-- Store an instance; whoever sleeps past its due instant is told.
local function store_worker(workers, workerdue, tag, namespace, instance, w)
  local due = liveness_due(w)
  local head = redis.call('ZRANGE', workerdue, 0, 0, 'WITHSCORES')[2]
  redis.call('HSET', workers, instance, cmsgpack.pack(w.worker_id, w.liveness_ttl_ms, w.registered_at_ms,
    w.last_heartbeat_at_ms, w.expires_at_ms, w.lapsed_at_ms, w.details))
  redis.call('ZADD', workerdue, due, namespace .. ' ' .. instance)
  if not head or due < tonumber(head) then
    redis.pcall('SPUBLISH', tag .. 'ch:due', string.format('%.0f', due))
  end
end

-- Forget an instance; whether it was there.
local function remove_worker(workers, workerdue, namespace, instance)
  redis.call('ZREM', workerdue, namespace .. ' ' .. instance)
  return redis.call('HDEL', workers, instance) == 1
end
