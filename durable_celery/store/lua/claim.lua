-- claim: begin an attempt of a step, counted before it runs.
-- ARGV: 2 id, 3 run number, 4 step number, 5 owner
-- Returns: {'claim', attempt, lost, retries, line of the step's scheduled event, arguments in their place or false}, or
--       {'refused', reason, message or false}.

local id, execution, number, owner = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local run = run_of(id)
if not run or execution > (run.run or 1) then return { 'refused', 'unknown', false } end

local place = place_of(execution, number)
local step, other = step_of(id, place)
if not step then
  local is_ahead = execution == newest(id) and tonumber(number) > (run.last or 0)
  if not other and is_ahead then return { 'refused', 'unknown', false } end
  local message = not is_closed(run) and wake(id, true)
  return done({ 'refused', other == 'cancelled' and 'cancelled' or 'finished', message })
end
if step.state == 'child' or step.state == 'cancelling' then return { 'refused', 'held', false } end
if step.state == 'claimed' and step.owner ~= owner then
  if is_alive(step.owner) then return { 'refused', 'held', false } end
  free_step(id, place, step)
end
if step.state == 'pending' then
  if step.due and step.due > NOW then return { 'refused', 'early', false } end
  join(owner)
  step.state, step.owner, step.due, step.sends = 'claimed', owner, nil, 0
  step.attempt = (step.attempt or 0) + 1
  put_step(id, place, step)
  redis.call('ZREM', AGENDA, step_member(id, place))
  redis.call('SADD', held_key(owner), step_member(id, place))
end
return done({ 'claim', step.attempt, step.lost or 0, step.retries or 0, line_of(id, step), step.override or false })
