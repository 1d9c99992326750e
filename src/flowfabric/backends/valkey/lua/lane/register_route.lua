-- Make a route known, and with it its lane. `shape` is the stored text behind the namespace: kind and capabilities.
-- KEYS: meta registry routes
-- ARGV: lane:text route_id:text namespace:text shape:text
-- Refuses: route_limit_exceeded
-- Touches: tells the catalog channel
local stored = redis.call('HGET', registry, lane)
local at = 0
if redis.call('HEXISTS', routes, route_id) == 0 then
  if redis.call('HLEN', routes) >= S.ROUTES_PER_LANE_MAX then
    -- Several namespaces may use one combination of kind and capabilities; it counts once.
    local shapes, distinct = {}, 0
    for _, other in ipairs(redis.call('HVALS', routes)) do
      local _, last = string.find(other, '",', 1, true)
      local found = string.sub(other, (last or 0) + 1)
      if not shapes[found] then
        shapes[found] = true
        distinct = distinct + 1
      end
    end
    if distinct >= S.ROUTES_PER_LANE_MAX and not shapes[shape] then
      return refuse('route_limit_exceeded', false, 'lane', lane)
    end
  end
  local value = '["' .. namespace .. '",' .. shape
  at = count_change(meta)
  if not stored then
    stored = cmsgpack.pack('active', now, now, 0, 0)
    redis.call('HSET', registry, lane, stored)
  end
  redis.call('HSET', routes, route_id, value)
  tell_change(meta, tag, at, 'route', lane, route_id, value, cmsgpack.unpack(stored))
end
return ok(at, stored or '')
