-- hasten: let messages that were published, and are to be sent again within resend_after, fall due as if they had never
-- been published: now, or as soon as they have been out for a second.
-- ARGV: 2 how many of the oldest, 3 how many of the newest

local JUST_SENT = 1000
local from, to = '(' .. NOW, NOW + RESEND_AFTER

local function hasten(members, most)
  for index = 1, #members, 2 do
    if most <= 0 then return end
    local member, due_at = members[index], tonumber(members[index + 1])
    local kind, place, id = string.match(member, '^(%a)([%d.]*):(.*)$')
    local run = run_of(id)
    local step = run and kind == 's' and step_of(id, place)
    local sent = kind == 'r' and run or step
    if sent and (sent.sends or 0) > 0 then
      sent.sends, most = 0, most - 1
      if step then put_step(id, place, step) else changed[id] = true end
      redis.call('ZADD', AGENDA, math.max(NOW, math.min(due_at, due_at - RESEND_AFTER + JUST_SENT)), member)
    end
  end
end

local oldest, newest = tonumber(ARGV[2]), tonumber(ARGV[3])
hasten(redis.call('ZRANGEBYSCORE', AGENDA, from, to, 'WITHSCORES', 'LIMIT', 0, 4 * oldest), oldest)
hasten(redis.call('ZREVRANGEBYSCORE', AGENDA, to, from, 'WITHSCORES', 'LIMIT', 0, 4 * newest), newest)
return done(true)
