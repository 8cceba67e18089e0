-- hasten: let messages that were published, and are to be sent again within resend_after, fall due now.
-- ARGV: 2 how many at most

local most, hastened = tonumber(ARGV[2]), 0
local soon = redis.call('ZRANGEBYSCORE', AGENDA, '(' .. NOW, NOW + RESEND_AFTER, 'LIMIT', 0, 4 * most)
for _, member in ipairs(soon) do
  if hastened >= most then break end
  local kind, place, id = string.match(member, '^(%a)([%d.]*):(.*)$')
  local entry = run_of(id)
  if entry and kind == 's' then entry = step_of(id, place) end
  if entry and (kind == 's' or kind == 'r') and (entry.sends or 0) > 0 then
    redis.call('ZADD', AGENDA, NOW, member)
    hastened = hastened + 1
  end
end
return done(hastened)
