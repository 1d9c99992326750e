-- Add or overwrite tags, in any state. `tags` are names and values in turn. Answers all tags, as a JSON object.
-- KEYS: execution eligible due own lost
-- ARGV: tags:rest
-- Refuses: execution_not_found invalid_input

if #tags == 0 or #tags % 2 == 1 then
  return refuse('invalid_input', 'tags are names and values in turn', 'field', 'tags')
end
local r, refused = open(K)
if not r then
  return refused
end
now = since(r, now)
local stored = redis.call('HGET', K.execution, 't')
local readable, all = true, {}
if stored then
  readable, all = pcall(cjson.decode, stored)
end
if not readable or type(all) ~= 'table' then
  return refuse('corrupt', 'the stored tags cannot be read')
end
for at = 1, #tags, 2 do
  all[tags[at]] = tags[at + 1]
end
local count = 0
for _ in pairs(all) do
  count = count + 1
end
if count > S.TAGS_MAX then
  return refuse('invalid_input', 'an execution has at most ' .. S.TAGS_MAX .. ' tags', 'field', 'tags')
end
local encoded = cjson.encode(all)
r.set.t = encoded
r.last_mutation_at_ms = now
store(K, r)
return ok(encoded)
