-- hasten: let messages that were published over a second ago, and are to be sent again within resend_after, fall due now,
-- as if they had never been published.
-- ARGV: 2 how many at most

local most, hastened, JUST_SENT = tonumber(ARGV[2]), 0, 1000
local soon = redis.call('ZRANGEBYSCORE', AGENDA, '(' .. NOW, NOW + RESEND_AFTER - JUST_SENT, 'LIMIT', 0, 4 * most)
for _, member in ipairs(soon) do
  if hastened >= most then break end
  local kind, place, id = string.match(member, '^(%a)([%d.]*):(.*)$')
  local run = run_of(id)
  local step = run and kind == 's' and step_of(id, place)
  local sent = kind == 'r' and run or step
  if sent and (sent.sends or 0) > 0 then
    sent.sends, hastened = 0, hastened + 1
    if step then put_step(id, place, step) else changed[id] = true end
    redis.call('ZADD', AGENDA, NOW, member)
  end
end
return done(hastened)
