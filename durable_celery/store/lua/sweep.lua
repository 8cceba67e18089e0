-- sweep: settle what is due in this shard, up to a limit. Dead owners come first: what they held is then due as well.
-- ARGV: 2 limit, 3 payload of the failure of a step that took too long, with @STORY@ for what happened, 4 JSON of these
--       stories, by limit, with @TIME@ for its seconds and @QUEUE@ for where the step's message lies
-- Returns: {messages, counts as {kind, n, ...}, more (0, 1), ms until the next entry or false, known processes}.

local most, failure, stories = tonumber(ARGV[2]), ARGV[3], cjson.decode(ARGV[4])
local messages, counts = {}, {}

local NAMES = { r = 'run', s = 'step', t = 'timer', d = 'deadline', x = 'retention', o = 'owner' }

local function count(kind) counts[NAMES[kind]] = (counts[NAMES[kind]] or 0) + 1 end

local function send(message)
  if message then messages[#messages + 1] = message end
end

-- By the kind of the entry. False: it stands for nothing any more.
local settle = {}

function settle.r(id)
  local run = run_of(id)
  if run.owner or run.delivered then return false end
  local sends = run.sends or 0
  arm(id, NOW + wait_after(sends), sends + 1)
  send(run_message(id, sends))
end

function settle.s(id, place)
  local step = step_of(id, place)
  if not step or step.owner then return false end
  redis.call('ZADD', AGENDA, NOW + wait_after(step.sends), step_member(id, place))
  step.sends = step.sends + 1
  put_step(id, place, step)
  local execution, number = parts_of(place)
  local is_cancel = step.state == 'cancelling' and 1 or 0
  local told = { (step.attempt or 0) + 1, step.retries or 0, step.override or false, is_cancel, step.sends - 1 }
  send({ 'step', id, head_of(id), execution, number, line_of(id, step), told })
end

function settle.t(id, place)
  local _, number = parts_of(place)
  redis.call('ZREM', AGENDA, 't' .. place .. ':' .. id)
  redis.call('HDEL', open_key(id), place)
  if number == '0' then
    run_of(id).gate = 1
    changed[id] = true
  end
  append(id, '{"e":"Z","n":' .. number .. '}')
  send(wake(id))
end

-- As it stands in a JSON text; what it names may hold quotes.
local function story(id, step, passed)
  local header = cjson.decode(string.match(line_of(id, step), '^%d+ ([^\n]*)'))
  local queue = header.options and header.options.queue
  local words = {
    TIME = string.format('%g', step.limits[passed] / 1000),
    QUEUE = queue and 'queue ' .. queue or 'the queue of ' .. header.task,
  }
  return string.sub(cjson.encode((string.gsub(stories[passed], '@(%u+)@', words))), 2, -2)
end

function settle.d(id, place)
  local _, number = parts_of(place)
  local step = step_of(id, place)
  if not step then return false end
  local passed = nil
  for _, kind in ipairs({ 'whole', 'start', 'attempt', 'heartbeat' }) do
    local at = step.ends[kind]
    if at and at <= NOW and not passed then passed = kind end
  end
  if not passed then return false end
  local tries = step.limits.tries or 0
  local is_last = tries > 0 and (step.attempt or 0) >= tries
  if passed == 'heartbeat' or (passed == 'attempt' and not is_last) then
    free_step(id, place, step, passed == 'heartbeat' and SILENT or ATTEMPT_OVER)
    return
  end
  local words = story(id, step, passed)
  redis.call('ZREM', AGENDA, 'd' .. place .. ':' .. id)
  if step.child then
    cancel_step(id, place, step)
  else
    forget_step(id, place, step)
  end
  local payload = string.gsub(failure, '@STORY@', function() return words end)
  append(id, string.format('{"e":"F","n":%s,"a":%d}\n%s', number, step.attempt or 0, payload))
  send(wake(id))
end

function settle.x(id, past)
  redis.call('ZREM', AGENDA, 'x' .. past .. ':' .. id)
  if past ~= '' then
    redis.call('DEL', log_key(id, past))
    return
  end
  local open = redis.call('HGETALL', open_key(id))
  for index = 1, #open, 2 do
    local step = step_of(id, open[index])
    if step then forget_step(id, open[index], step) end
  end
  redis.call('ZREM', PREFIX .. 'index:closed', id)
  redis.call('DEL', run_key(id), log_key(id), open_key(id), keys_key(id))
  loaded[id], changed[id] = false, nil
end

local dead = redis.call('ZRANGEBYSCORE', OWNERS, '-inf', NOW, 'LIMIT', 0, most)
for _, process in ipairs(dead) do
  count('o')
  free_process(process)
end

local due = redis.call('ZRANGEBYSCORE', AGENDA, '-inf', NOW, 'LIMIT', 0, most - #dead)
for _, member in ipairs(due) do
  -- An earlier one of this sweep may have settled it.
  if redis.call('ZSCORE', AGENDA, member) then
    local kind, place, id = string.match(member, '^(%a)([%d.]*):(.*)$')
    if run_of(id) and settle[kind](id, place) ~= false then
      count(kind)
    else
      redis.call('ZREM', AGENDA, member)
    end
  end
end

local next_at = nil
for _, name in ipairs({ AGENDA, OWNERS }) do
  local first = redis.call('ZRANGE', name, 0, 0, 'WITHSCORES')[2]
  if first and (not next_at or tonumber(first) < next_at) then next_at = tonumber(first) end
end
local flat = {}
for kind, number in pairs(counts) do
  flat[#flat + 1], flat[#flat + 2] = kind, number
end
local more = next_at and next_at <= NOW and 1 or 0
local wait = next_at and math.max(0, next_at - NOW) or false
return done({ messages, flat, more, wait, redis.call('ZCARD', OWNERS) })
