-- commit: append the outputs of a turn, with all that follows from them.
-- ARGV: 2 id, 3 token, 4 owner, 5 read, 6 waiting, 7 hold (0, 1), 8 number of a step that the owner begins, or '',
--       9 how many messages go into the broker; then two for each of them: queue, text; then
--       five for each output: what follows, number, two more, text of the event.
--       What follows: 'step' and 'child' (JSON of the limits or ''), 'timer' (due),
--       'cancel' (target), 'close' (status), 'continue' (names of the kinds of inputs that go along), '' (nothing).
--       'close' and 'continue' end a run, so they come last. Before all others may come the outcome of a step, which is
--       an input and recorded here, with the lease that it takes: 'finish' (the claim's token, when).
-- Returns: {1, events between read and the outputs, length, held (0, 1), now, begun (0, 1), mailed (0, 1)};
--       or, if stale, {0, newest token, owner, read}.

local id, token, owner, read = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local waiting, hold, letters = ARGV[6], ARGV[7] == '1', tonumber(ARGV[9])
local FIRST, WIDTH = 10 + 2 * letters, 5
local count = (#ARGV - FIRST + 1) / WIDTH
local run = run_of(id)
local is_finishing = ARGV[FIRST] == 'finish'
-- What is written here begins with the outcome.
if is_finishing then read = read - 1 end
local is_continuing = count > 0 and ARGV[#ARGV - WIDTH + 1] == 'continue'

-- A commit that has taken effect and comes again (its reply was lost): its outputs are the last that were committed.
local function is_repeated()
  if count == 0 or run.token ~= token or (run.owner and run.owner ~= owner) then return false end
  local log, length = log_key(id), run.read or 0
  if is_continuing then
    -- Two runs may well end in the same way; it is the turn that tells.
    if run.begun ~= token then return false end
    log = log_key(id, newest(id) - 1)
    length = redis.call('LLEN', log) - 1
  end
  if read + count > length then return false end
  local lines = redis.call('LRANGE', log, length - count + 1, length)
  for index = 1, count do
    if string.match(lines[index], '^%d+ (.*)$') ~= ARGV[FIRST + index * WIDTH - 1] then return false end
  end
  return true
end

if run and is_repeated() then
  if is_continuing then return { 1, {}, redis.call('LLEN', log_key(id, newest(id) - 1)) - 1, 0, NOW, 0, 0 } end
  return { 1, page(id, read, run.read - count), run.read, run.owner and 1 or 0, NOW, 0, letters > 0 and 1 or 0 }
end

local base = run and length_of(id)

-- The step that the outcome is of, if nothing has happened to the run since its last turn but an attempt at it.
local function step_to_finish()
  if is_closed(run) or run.owner or run.token ~= token - 1 then return false end
  if read ~= run.read or read ~= base or tonumber(ARGV[FIRST + 3]) > NOW then return false end
  local step = step_of(id, place_of(newest(id), ARGV[FIRST + 1]))
  return step and step.state == 'claimed' and step.attempt == tonumber(ARGV[FIRST + 2]) and is_alive(owner) and step
end

local is_current = run and run.token == token and run.owner == owner
local finished = run and is_finishing and step_to_finish()
if is_finishing then is_current = finished end
if not is_current or (count > 0 and (is_closed(run) or read < (run.read or 0))) then
  return { 0, run and run.token or 0, run and run.owner or '', run and run.read or 0 }
end

local follow, execution = {}, newest(id)
local begun = ARGV[8] ~= '' and is_alive(owner) and place_of(execution, ARGV[8])

local function open_step(place, seq, limits, child)
  local step = { seq = seq, state = 'pending', sends = 1, child = child }
  if limits ~= '' then
    step.limits = cjson.decode(limits)
    limit(id, place, step, { 'whole', 'start' })
  end
  if place == begun then
    begin_step(id, place, step, owner)
  else
    put_step(id, place, step)
    redis.call('ZADD', AGENDA, NOW + wait_after(0), step_member(id, place))
  end
end

function follow.finish(place)
  forget_step(id, place, finished)
  if hold then grant(id, owner) else renew_lease(id, owner) end
end

-- A lease that was taken here, and is not kept, was in nobody's hands.
local function let_go()
  if is_finishing and not hold then run.owner = nil else give_back(id) end
end

function follow.step(place, seq, limits) open_step(place, seq, limits) end

function follow.child(place, seq, limits) open_step(place, seq, limits, 1) end

function follow.timer(place, _, due)
  redis.call('HSET', open_key(id), place, 'timer')
  redis.call('ZADD', AGENDA, due, 't' .. place .. ':' .. id)
end

function follow.cancel(_, _, target)
  local place = place_of(execution, target)
  local step, other = step_of(id, place)
  if step then
    cancel_step(id, place, step)
  elseif other == 'timer' then
    redis.call('HDEL', open_key(id), place)
    redis.call('ZREM', AGENDA, 't' .. place .. ':' .. id)
  end
end

-- Timers and alarms mean nothing to a run that has ended, and nobody waits for its children, or for what is told from
-- outside. Steps that were not cancelled are still executed; children that are to be cancelled are still told. Where the
-- log goes before them, they keep what they need of it.
local function drop_open(is_followed)
  redis.call('ZREM', AGENDA, 't0:' .. id)
  local open = redis.call('HGETALL', open_key(id))
  for index = 1, #open, 2 do
    local place, text = open[index], open[index + 1]
    if text == 'timer' or text == 'cancelled' then
      redis.call('HDEL', open_key(id), place)
      redis.call('ZREM', AGENDA, 't' .. place .. ':' .. id)
    else
      local step = cjson.decode(text)
      redis.call('ZREM', AGENDA, 'd' .. place .. ':' .. id)
      if step.state == 'child' or step.state == 'waiting' then
        forget_step(id, place, step)
      elseif is_followed then
        step.line = line_of(id, step)
        put_step(id, place, step)
      end
    end
  end
end

function follow.close(_, _, status)
  run.status, run.closed, run.waiting = status, NOW, nil
  local created_at = redis.call('ZSCORE', PREFIX .. 'index:open', id)
  redis.call('ZREM', PREFIX .. 'index:open', id)
  redis.call('ZADD', PREFIX .. 'index:closed', created_at, id)
  drop_open()
  -- Who may not tell it need not: it is a hint.
  redis.pcall('PUBLISH', string.match(PREFIX, '^(.*):{') .. ':ends', id)
end

-- The next run: a new log, with the same head, and with the inputs that no code has taken.
function follow.continue(_, _, kinds, _, text)
  drop_open(true)
  local header, payload = string.match(text, '^([^\n]*)\n?(.*)$')
  local told, inputs = cjson.decode(header), {}
  for _, seq in ipairs(told.kept or {}) do
    inputs[#inputs + 1] = redis.call('LINDEX', log_key(id), seq)
  end
  for _, line in ipairs(base > read and redis.call('LRANGE', log_key(id), read + 1, base) or {}) do
    local kind = string.match(line, '^%d+ {"e":"(%a+)"')
    if kind and string.find(kinds, ' ' .. kind .. ' ', 1, true) then inputs[#inputs + 1] = line end
  end
  local head = head_of(id)
  run.past = math.max(run.past or 0, NOW + RETENTION)
  redis.call('ZADD', AGENDA, NOW + RETENTION, 'x' .. execution .. ':' .. id)
  run.run, run.begun, run.last, run.status, run.waiting = execution + 1, token, nil, 'running', nil
  local _, name, parent = string.match(head, '^%d+\n([^\n]*)\n([^\n]*)\n([^\n]*)')
  local started = {
    e = 'R', name = name, format = told.format, version = told.version, parent = parent ~= '' and parent or nil,
  }
  redis.call('RPUSH', log_key(id), head)
  append(id, cjson.encode(started) .. '\n' .. payload)
  for _, line in ipairs(inputs) do
    append(id, string.match(line, '^%d+ (.*)$'))
  end
end

for index = FIRST, #ARGV, WIDTH do
  local number, text = ARGV[index + 1], ARGV[index + 4]
  local seq = append(id, text, ARGV[index] == 'finish' and ARGV[index + 3])
  run.last = math.max(run.last or 0, tonumber(number))
  local place = place_of(execution, number)
  if ARGV[index] ~= '' then follow[ARGV[index]](place, seq, ARGV[index + 2], ARGV[index + 3], text) end
end
local length = base + count
changed[id] = true
if is_continuing then
  run.read, run.failures, run.reason = nil, nil, nil
  let_go()
  wake(id)
  return done({ 1, {}, length, 0, NOW, 0, 0 })
end
run.read, run.failures, run.reason = length, nil, nil
if not is_closed(run) then
  local is_gated = run.status ~= 'running' and redis.call('ZSCORE', AGENDA, 't0:' .. id)
  run.status = is_gated and 'pending' or 'running'
  run.waiting = waiting ~= '' and waiting or nil
end
local held = hold or (base > read and not is_closed(run))
if not held then
  let_go()
  -- Else all that has come was read.
  if is_closed(run) then wake(id) end
end
local reply = done({ 1, page(id, read, base), length, held and 1 or 0, NOW, begun and 1 or 0 })
local mailed = 0
for index = 10, FIRST - 1, 2 do
  mailed = mailed + (post(ARGV[index], ARGV[index + 1]) and 1 or 0)
end
reply[7] = letters > 0 and mailed == letters and 1 or 0
return reply
