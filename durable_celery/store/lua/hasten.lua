-- hasten: let messages that were published over a second ago, and are to be sent again within resend_after, fall due now,
-- as if they had never been published.
-- ARGV: 2 how many of the oldest, 3 how many of the newest

local JUST_SENT = 1000
local from, to = '(' .. NOW, NOW + RESEND_AFTER - JUST_SENT

local function hasten(members, most)
  for _, member in ipairs(members) do
    if most <= 0 then return end
    local kind, place, id = string.match(member, '^(%a)([%d.]*):(.*)$')
    local run = run_of(id)
    local step = run and kind == 's' and step_of(id, place)
    local sent = kind == 'r' and run or step
    if sent and (sent.sends or 0) > 0 then
      sent.sends, most = 0, most - 1
      if step then put_step(id, place, step) else changed[id] = true end
      redis.call('ZADD', AGENDA, NOW, member)
    end
  end
end

local oldest, newest = tonumber(ARGV[2]), tonumber(ARGV[3])
hasten(redis.call('ZRANGEBYSCORE', AGENDA, from, to, 'LIMIT', 0, 4 * oldest), oldest)
hasten(redis.call('ZREVRANGEBYSCORE', AGENDA, to, from, 'LIMIT', 0, 4 * newest), newest)
return done(true)
