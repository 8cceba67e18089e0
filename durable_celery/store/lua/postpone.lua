-- postpone: end an attempt without an outcome; the step is sent again after a delay, or waits for what is told outside.
-- ARGV: 2 id, 3 run number, 4 step number, 5 owner of the claim, 6 delay (ms; '': never), 7 summary of the error,
--       8 retries and 9 override ('': as they were)
-- Returns: whether the claim was the step's (0, 1).

local id, execution, owner, delay = ARGV[2], tonumber(ARGV[3]), ARGV[5], tonumber(ARGV[6])
local place = place_of(execution, ARGV[4])
local step = run_of(id) and step_of(id, place)
if not step or step.owner ~= owner then return 0 end
redis.call('SREM', held_key(owner), step_member(id, place))
step.owner, step.sends = nil, 0
step.error = ARGV[7]
if ARGV[8] ~= '' then step.retries = tonumber(ARGV[8]) end
if ARGV[9] ~= '' then step.override = ARGV[9] end
if not delay then
  step.state = 'waiting'
  if is_needed(id, execution) then
    put_step(id, place, step)
  else
    -- Nobody waits for what somebody outside may tell.
    forget_step(id, place, step)
  end
  return 1
end
step.state, step.due = 'pending', NOW + delay
limit(id, place, step, {}, { 'attempt', 'heartbeat' })
put_step(id, place, step)
redis.call('ZADD', AGENDA, NOW + delay, step_member(id, place))
return 1
