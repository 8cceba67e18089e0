-- runs: read the records of the newest runs before a place in the list.
-- ARGV: 2 'open', 'closed' or '' (both), 3 created_at of the place or '+inf', 4 its id, 5 limit
-- Returns: records, up to the limit of each index, those of one index newest first.

local which, before, last, limit = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local records = {}
for _, name in ipairs({ 'open', 'closed' }) do
  if which == '' or which == name then
    local index = PREFIX .. 'index:' .. name
    -- Runs of the very same millisecond stand in the order of their ids; those up to the place are skipped.
    local ties = before == '+inf' and 0 or redis.call('ZCOUNT', index, before, before)
    local found = redis.call('ZREVRANGEBYSCORE', index, before, '-inf', 'WITHSCORES', 'LIMIT', 0, limit + ties)
    local taken = 0
    for position = 1, #found, 2 do
      local id, created_at = found[position], found[position + 1]
      if taken < limit and (created_at ~= before or id < last) and run_of(id) then
        records[#records + 1] = record(id)
        taken = taken + 1
      end
    end
  end
end
return records
