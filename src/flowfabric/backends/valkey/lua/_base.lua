-- What every function uses: replies, and the clock. A reply begins with 1 or with the code of a refusal; then come two
-- hints for the caller: the score of the execution that became the head of its eligible index, and its new timer.

local effect_head, effect_due = false, false

local function ok(...)
  return { 1, effect_head, effect_due, ... }
end

local function refuse(code, message, ...)
  return { code, effect_head, effect_due, message or false, ... }
end

-- Bind the result of a call that may meet a migrating slot: nil and a refusal, or the value.
local function touch(...)
  local value = redis.pcall(...)
  if type(value) == 'table' and value.err then
    return nil, refuse('slot_migrating', value.err)
  end
  return value
end

-- The whole number that a text says, or false. Most are small; they are looked up.
local SMALL = {}
for value = 0, 1024 do
  SMALL[value .. ''] = value
end
local function is_integer(text)
  local value = SMALL[text]
  if value then
    return value
  end
  value = #text < 17 and string.find(text, '^%d+$') and tonumber(text)
  return value and value <= 9007199254740991 and value
end
