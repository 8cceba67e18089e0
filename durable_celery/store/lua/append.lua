-- append: add an input once per key.
-- ARGV: 2 id, 3 key, 4 kind of event ('', 'cancel', or the number of a timer), 5 its text, 6 how many inputs may be unread
--       (none: any number)
-- Returns: {added (0, 1), message or false}, or {-1} for no run, or {-2, status} for a closed one, or {-3, unread} for one
--          whose inbox is full.

local id, key, kind, text = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local run = run_of(id)
if not run then return { -1 } end

-- The gate's timer is noted in the record, any other in the table of open commands: neither needs a key.
local function was_accepted()
  if kind == '0' then return run.gate end
  if kind == 'cancel' and run.cancel then return true end
  if kind ~= '' and kind ~= 'cancel' then
    return redis.call('HGET', open_key(id), place_of(newest(id), kind)) ~= 'timer'
  end
  return redis.call('HEXISTS', keys_key(id), key) == 1
end

if was_accepted() then
  local message = wake(id, true)
  return done({ 0, message })
end
if is_closed(run) then return { -2, run.status } end
if ARGV[6] then
  local unread = length_of(id) - (run.read or 0)
  if unread >= tonumber(ARGV[6]) then return { -3, unread } end
end
if kind == '' or kind == 'cancel' then
  redis.call('HSET', keys_key(id), key, 1)
else
  local place = place_of(newest(id), kind)
  redis.call('ZREM', AGENDA, 't' .. place .. ':' .. id)
  redis.call('HDEL', open_key(id), place)
end
if kind == 'cancel' then run.cancel = 1 end
if kind == '0' then run.gate = 1 end
changed[id] = true
append(id, text)
local message = wake(id)
return done({ 1, message })
