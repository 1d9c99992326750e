-- The catalog: lanes, routes and defaults of kinds. Every change counts up a version, and the channel says what
-- changed, so that a process that missed a message notices.

-- Count a change; the first write of the function that makes it.
local function count_change(meta)
  return redis.call('HINCRBY', meta, 'catalog', 1)
end

-- Tell everybody what changed, and in which store: several databases of a server share its channels. It only informs,
-- so it never fails a function that has written.
local function tell_change(meta, tag, version, ...)
  local layout = redis.pcall('HGET', meta, 'layout')
  local store_id = type(layout) == 'string' and string.match(layout, '"store_id":"([^"]*)"') or ''
  redis.pcall('SPUBLISH', tag .. 'ch:catalog', cmsgpack.pack({ store_id, version, ... }))
end
