-- finish: record a step's outcome, once; and take the run's lease in the same operation, if that is asked for.
-- ARGV: 2 id, 3 run number, 4 step number, 5 the claim's token ('': none), 6 text of the outcome, 7 owner who takes
--       over ('': nobody), 8 known seq
-- Returns: {recorded (0, 1), turn or false, message or false}.

local id, execution, number, token = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local text, owner, known = ARGV[6], ARGV[7], tonumber(ARGV[8])
local run = run_of(id)
if not run then return { 0, false, false } end

local recorded, place = false, place_of(execution, number)
local step = step_of(id, place)
if step and (token == '' or (step.state == 'claimed' and step.attempt == tonumber(token))) then
  forget_step(id, place, step)
  if step.state == 'cancelling' and is_needed(id, execution) then
    redis.call('HSET', open_key(id), place, 'cancelled')
  elseif is_needed(id, execution) then
    append(id, text)
    recorded = true
  end
end

local begun, message = false, false
if not is_closed(run) and has_unread(id) then
  if owner ~= '' and not is_held(id, owner) then
    grant(id, owner)
    begun = turn(id, known)
  else
    message = wake(id, not recorded)
  end
end
return done({ recorded and 1 or 0, begun, message })
