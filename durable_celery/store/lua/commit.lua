-- commit: append the outputs of a turn, with all that follows from them.
-- ARGV: 2 id, 3 token, 4 owner, 5 read, 6 waiting, 7 hold (0, 1); then five for each output: what follows, number, two
--       more, text of the event. What follows: 'step' and 'child' (JSON of the limits or ''), 'timer' (due),
--       'cancel' (target), 'close' (status), '' (nothing).
-- Returns: {1, events between read and the outputs, length, held (0, 1), now}; or, if stale, {0, newest token, owner,
--       read}.

local id, token, owner, read = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local waiting, hold, FIRST, WIDTH = ARGV[6], ARGV[7] == '1', 8, 5
local count = (#ARGV - FIRST + 1) / WIDTH
local run = run_of(id)

-- A commit that has taken effect and comes again (its reply was lost): its outputs are the last that were committed.
local function is_repeated()
  if count == 0 or run.token ~= token or (run.owner and run.owner ~= owner) then return false end
  local length = run.read or 0
  if read + count > length then return false end
  local lines = redis.call('LRANGE', log_key(id), length - count + 1, length)
  for index = 1, count do
    if string.match(lines[index], '^%d+ (.*)$') ~= ARGV[FIRST + index * WIDTH - 1] then return false end
  end
  return true
end

if run and is_repeated() then
  return { 1, page(id, read, run.read - count), run.read, run.owner and 1 or 0, NOW }
end
local is_current = run and run.token == token and run.owner == owner
if not is_current or (count > 0 and (is_closed(run) or read < (run.read or 0))) then
  return { 0, run and run.token or 0, run and run.owner or '', run and run.read or 0 }
end

local follow = {}

function follow.step(number, seq, limits, _, child)
  local step = { seq = seq, state = 'pending', sends = 1, child = child }
  if limits ~= '' then
    step.limits = cjson.decode(limits)
    limit(id, number, step, { 'whole', 'start' })
  end
  put_step(id, number, step)
  redis.call('ZADD', AGENDA, NOW + wait_after(0), step_member(id, number))
end

function follow.child(number, seq, limits) follow.step(number, seq, limits, nil, 1) end

function follow.timer(number, _, due)
  redis.call('HSET', open_key(id), number, 'timer')
  redis.call('ZADD', AGENDA, due, 't' .. number .. ':' .. id)
end

function follow.cancel(_, _, target)
  local step, other = step_of(id, target)
  if step then
    cancel_step(id, target, step)
  elseif other == 'timer' then
    redis.call('HDEL', open_key(id), target)
    redis.call('ZREM', AGENDA, 't' .. target .. ':' .. id)
  end
end

-- Timers and alarms mean nothing to a closed run, and nobody waits for its children, or for what is told from outside.
-- Steps that were not cancelled are still executed; children that are to be cancelled are still told.
function follow.close(_, _, status)
  run.status, run.closed, run.waiting = status, NOW, nil
  local created_at = redis.call('ZSCORE', PREFIX .. 'index:open', id)
  redis.call('ZREM', PREFIX .. 'index:open', id)
  redis.call('ZADD', PREFIX .. 'index:closed', created_at, id)
  redis.call('ZREM', AGENDA, 't0:' .. id)
  local open = redis.call('HGETALL', open_key(id))
  for index = 1, #open, 2 do
    local number, text = open[index], open[index + 1]
    if text == 'timer' or text == 'cancelled' then
      redis.call('HDEL', open_key(id), number)
      redis.call('ZREM', AGENDA, 't' .. number .. ':' .. id)
    else
      local step = cjson.decode(text)
      redis.call('ZREM', AGENDA, 'd' .. number .. ':' .. id)
      if step.state == 'child' or step.state == 'waiting' then forget_step(id, number, step) end
    end
  end
end

local base = length_of(id)
for index = FIRST, #ARGV, WIDTH do
  local number = ARGV[index + 1]
  local seq = append(id, ARGV[index + 4])
  run.last = math.max(run.last or 0, tonumber(number))
  if ARGV[index] ~= '' then follow[ARGV[index]](number, seq, ARGV[index + 2], ARGV[index + 3]) end
end
local length = base + count
changed[id] = true
run.read, run.failures, run.reason = length, nil, nil
if not is_closed(run) then
  local is_gated = run.status ~= 'running' and redis.call('ZSCORE', AGENDA, 't0:' .. id)
  run.status = is_gated and 'pending' or 'running'
  run.waiting = waiting ~= '' and waiting or nil
end
local held = hold or (base > read and not is_closed(run))
if not held then
  give_back(id)
  wake(id)
end
return done({ 1, page(id, read, base), length, held and 1 or 0, NOW })
