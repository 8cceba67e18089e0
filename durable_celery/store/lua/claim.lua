-- claim: begin an attempt of a step, counted before it runs; or give a heartbeat of one.
-- ARGV: 2 id, 3 run number, 4 step number, 5 owner, 6 known seq ('': no view is wanted),
--       7 progress that a heartbeat saves ('': as it was; none: no heartbeat)
-- Returns: {'claim', attempt, lost, retries, line of the step's scheduled event, arguments in their place or false,
--       progress or false, view or false}, or {'refused', reason, message or false}.

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
local progress = ARGV[7]
if progress then
  local is_its_own = step.state == 'waiting' or (step.state == 'claimed' and step.owner == owner)
  if not is_needed(id, execution) then
    if is_its_own then forget_step(id, place, step) end
    return { 'refused', 'finished', false }
  end
  if not is_its_own then return { 'refused', 'lost', false } end
  if progress ~= '' then step.progress = progress end
  limit(id, place, step, { 'heartbeat' })
  put_step(id, place, step)
elseif step.state == 'waiting' then
  return { 'refused', 'held', false }
end
if step.state == 'child' or step.state == 'cancelling' then return { 'refused', 'held', false } end
if step.state == 'claimed' and step.owner ~= owner then
  if is_alive(step.owner) then return { 'refused', 'held', false } end
  free_step(id, place, step)
end
if step.state == 'pending' then
  if step.due and step.due > NOW then return { 'refused', 'early', false } end
  join(owner)
  begin_step(id, place, step, owner)
end

-- What the owner has missed of a run that nobody has in hand, and in which nothing is unread.
local function view()
  local known, length = tonumber(ARGV[6]), length_of(id)
  if not is_needed(id, execution) or run.owner or (run.read or 0) ~= length then return false end
  return known < length and length <= known + PAGE and turn(id, known)
end

return done({
  'claim', step.attempt, step.lost or 0, step.retries or 0, line_of(id, step), step.override or false,
  step.progress or false, ARGV[6] ~= '' and view()
})
