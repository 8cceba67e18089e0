-- settle: note that a child run exists, or that it was told to cancel.
-- ARGV: 2 id, 3 run number, 4 step number, 5 whether it was told to cancel (0, 1)
-- Returns: whether anything changed (0, 1).

local id, execution, told = ARGV[2], tonumber(ARGV[3]), ARGV[5] == '1'
local place = place_of(execution, ARGV[4])
local step = run_of(id) and step_of(id, place)
if not step then return 0 end
if step.state == 'cancelling' and told then
  forget_step(id, place, step)
  if is_needed(id, execution) then redis.call('HSET', open_key(id), place, 'cancelled') end
  return 1
end
if step.state ~= 'pending' or told then return 0 end
if not is_needed(id, execution) then
  -- Nobody waits for the child's end.
  forget_step(id, place, step)
  return 1
end
redis.call('ZREM', AGENDA, step_member(id, place))
step.state = 'child'
put_step(id, place, step)
return 1
