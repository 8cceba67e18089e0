-- postpone: end an attempt without an outcome; the step is sent again after a delay, or waits for what is told outside.
-- ARGV: 2 id, 3 step number, 4 owner of the claim, 5 delay (ms; '': never), 6 summary of the error, 7 retries and
--       8 override ('': as they were)
-- Returns: whether the claim was the step's (0, 1).

local id, number, owner, delay = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local step = run_of(id) and step_of(id, number)
if not step or step.owner ~= owner then return 0 end
redis.call('SREM', held_key(owner), step_member(id, number))
step.owner, step.sends = nil, 0
step.error = ARGV[6]
if ARGV[7] ~= '' then step.retries = tonumber(ARGV[7]) end
if ARGV[8] ~= '' then step.override = ARGV[8] end
if not delay then
  step.state = 'waiting'
  if is_closed(run_of(id)) then
    -- Nobody waits for what somebody outside may tell.
    forget_step(id, number, step)
  else
    put_step(id, number, step)
  end
  return 1
end
step.state, step.due = 'pending', NOW + delay
limit(id, number, step, {}, { 'attempt', 'heartbeat' })
put_step(id, number, step)
redis.call('ZADD', AGENDA, NOW + delay, step_member(id, number))
return 1
