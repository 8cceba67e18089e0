-- postpone: end an attempt without an outcome; the step is sent again after a delay.
-- ARGV: 2 id, 3 step number, 4 owner of the claim, 5 delay (ms), 6 summary of the error, 7 retries and 8 override
--       ('': as they were)
-- Returns: whether the claim was the step's (0, 1).

local id, number, owner, delay = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local step = run_of(id) and step_of(id, number)
if not step or step.owner ~= owner then return 0 end
redis.call('SREM', held_key(owner), step_member(id, number))
step.state, step.owner, step.sends, step.due = 'pending', nil, 0, NOW + delay
step.error = ARGV[6]
if ARGV[7] ~= '' then step.retries = tonumber(ARGV[7]) end
if ARGV[8] ~= '' then step.override = ARGV[8] end
put_step(id, number, step)
redis.call('ZADD', AGENDA, NOW + delay, step_member(id, number))
return 1
