-- Count the leases that instances hold in one partition.
-- KEYS: own
-- ARGV: namespace:text instances:rest
local reply = ok()
for _, instance in ipairs(instances) do
  local holder = namespace .. ' ' .. instance
  reply[#reply + 1] = redis.call('ZLEXCOUNT', own, '[' .. holder .. ' ', '(' .. holder .. '!')
end
return reply
