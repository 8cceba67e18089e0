-- settle: note that a child run exists, or that it was told to cancel.
-- ARGV: 2 id, 3 step number, 4 whether it was told to cancel (0, 1)
-- Returns: whether anything changed (0, 1).

local id, number, told = ARGV[2], ARGV[3], ARGV[4] == '1'
local run = run_of(id)
local step = run and step_of(id, number)
if not step then return 0 end
if step.state == 'cancelling' and told then
  forget_step(id, number, step)
  if not is_closed(run) then redis.call('HSET', open_key(id), number, 'cancelled') end
  return 1
end
if step.state ~= 'pending' or told then return 0 end
if is_closed(run) then
  -- Nobody waits for the child's end.
  forget_step(id, number, step)
  return 1
end
redis.call('ZREM', AGENDA, step_member(id, number))
step.state = 'child'
put_step(id, number, step)
return 1
