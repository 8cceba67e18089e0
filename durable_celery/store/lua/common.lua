-- What all verbs share; this text stands before each of them.
--
-- One shard's keys have one prefix, '<namespace>:{<shard>}:', whose hash tag puts them into one slot. KEYS[1] is the
-- shard's agenda; the names of the other keys are built from its prefix, because a verb learns only on the way whose
-- things it meets (a dead owner's, a due run's).
--
--   agenda            zset    member -> due (ms): all that must happen
--   owners            zset    process -> end of its life (ms), unless it is renewed
--   peers:<host>      set     those of one host, by whose name theirs begin, before a colon
--   held:<process>    set     members that left the agenda because the process has them in hand
--   run:<id>          string  the record: JSON of what changes
--   log:<id>          list    0: the head, what never changes; n: event n as '<at> <text>'
--   log<n>:<id>       list    the same of run n, from the second on
--   open:<id>         hash    place of a command -> JSON of an open step, 'timer', or 'cancelled' (a step of an open run).
--                             A step with time limits has them in 'limits' (ms), and in 'ends' when those that run pass;
--                             one that has outlived its run has its scheduled event in 'line'
--   keys:<id>         hash    key of an accepted input -> 1
--   index:open, index:closed  zset  id -> created_at (ms)
--
-- The *place* of a command is its number, in later runs with the run before it: '7', '2.7'.
-- Members: 'r:<id>' run message, 's<place>:<id>' step message, 't<place>:<id>' timer, 'd<place>:<id>' alarm of a step,
-- 'x:<id>' retention of all, 'x<n>:<id>' of the log of run n, which another has followed.
-- An open thing is in exactly one of agenda and held. A run is marked woken while its 'r' is in the agenda.
--
-- ARGV[1]: owner_ttl, resend_after, resend_limit, retention in ms, with spaces between. The verb's own follow.

local PREFIX = string.sub(KEYS[1], 1, -7)
local AGENDA, OWNERS = KEYS[1], PREFIX .. 'owners'
local PAGE = 200
local LOST_STEP = 'the process that ran it was lost'
local LOST_TURN = 'the process that ran its turn was lost'
local ATTEMPT_OVER = 'the attempt did not end in time'
local SILENT = 'the attempt gave no heartbeat in time'
local CLOSED = { completed = true, failed = true, cancelled = true }

local ttl_text, resend_text, limit_text, retention_text = string.match(ARGV[1], '^(%d+) (%d+) (%d+) (%d+)$')
local OWNER_TTL, RESEND_AFTER = tonumber(ttl_text), tonumber(resend_text)
local RESEND_LIMIT, RETENTION = tonumber(limit_text), tonumber(retention_text)

local clock = redis.call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function run_key(id) return PREFIX .. 'run:' .. id end
local function open_key(id) return PREFIX .. 'open:' .. id end
local function keys_key(id) return PREFIX .. 'keys:' .. id end
local function process_of(owner) return string.match(owner, '^[^#]*') end
local function peers_key(process) return PREFIX .. 'peers:' .. (string.match(process, '^([^:]*):') or '') end
local function held_key(owner) return PREFIX .. 'held:' .. process_of(owner) end

-- Records are read once and written once per script: done() writes those that changed.
local loaded, changed = {}, {}

local function run_of(id)
  if loaded[id] == nil then
    local text = redis.call('GET', run_key(id))
    loaded[id] = text and cjson.decode(text) or false
  end
  return loaded[id]
end

-- The number of the newest run.
local function newest(id) return run_of(id).run or 1 end

local function log_key(id, number)
  number = tonumber(number or newest(id))
  return PREFIX .. 'log' .. (number > 1 and number or '') .. ':' .. id
end

local function place_of(execution, number) return execution == 1 and number or execution .. '.' .. number end

-- The run and the number of a command.
local function parts_of(place)
  local execution, number = string.match(place, '^(%d+)%.(%d+)$')
  return tonumber(execution or 1), number or place
end

local function done(reply)
  for id in pairs(changed) do
    redis.call('SET', run_key(id), cjson.encode(loaded[id]))
  end
  return reply
end

-- Put a message into a queue of the broker; whether it could be. It comes last: what a script has done stays done.
local function post(queue, message) return type(redis.pcall('LPUSH', queue, message)) == 'number' end

-- The log ------------------------------------------------------------------------------------------------------------

local function length_of(id) return redis.call('LLEN', log_key(id)) - 1 end

local function append(id, text, at)
  return redis.call('RPUSH', log_key(id), string.format('%.0f %s', at or NOW, text)) - 1
end

-- Events after seq `after`, at most a page, none after seq `last`.
local function page(id, after, last)
  last = math.min(last or after + PAGE, after + PAGE)
  if last <= after then return {} end
  return redis.call('LRANGE', log_key(id), after + 1, last)
end

local function head_of(id) return redis.call('LINDEX', log_key(id), 0) end

-- Answers ------------------------------------------------------------------------------------------------------------

-- The last: how often it was published before, as far as a sweep knows.
local function run_message(id, sends) return { 'run', id, head_of(id), run_of(id).token and 0 or 1, sends or 0 } end

local function record(id) return { id, cjson.encode(run_of(id)), head_of(id), length_of(id) } end

local function turn(id, known) return { record(id), page(id, known), NOW } end

-- Open steps ---------------------------------------------------------------------------------------------------------

-- The step, or nil and what stands in its place: 'timer', 'cancelled' or false.
local function step_of(id, place)
  local text = redis.call('HGET', open_key(id), place)
  if not text or text == 'timer' or text == 'cancelled' then return nil, text end
  return cjson.decode(text)
end

local function is_closed(run) return CLOSED[run.status] end

-- Whether the outcome of a step of this run may still matter to somebody.
local function is_needed(id, execution) return execution == newest(id) and not is_closed(run_of(id)) end

local function put_step(id, place, step) redis.call('HSET', open_key(id), place, cjson.encode(step)) end

local function step_member(id, place) return 's' .. place .. ':' .. id end

-- Its scheduled event; a step that has outlived its run has a copy.
local function line_of(id, step) return step.line or redis.call('LINDEX', log_key(id), step.seq) end

local function forget_step(id, place, step)
  redis.call('HDEL', open_key(id), place)
  redis.call('ZREM', AGENDA, step_member(id, place), 'd' .. place .. ':' .. id)
  if step.owner then redis.call('SREM', held_key(step.owner), step_member(id, place)) end
end

-- Let limits of a step begin anew, or be over, and arm its one alarm at the nearest of those that run. The caller puts
-- the step. Where nobody waits for its outcome it has no limits any more: its alarm went with its run.
local function limit(id, place, step, begun, over)
  if not step.limits or not is_needed(id, (parts_of(place))) then return end
  local ends, nearest = step.ends or {}, nil
  for _, kind in ipairs(over or {}) do
    ends[kind] = nil
  end
  for _, kind in ipairs(begun) do
    ends[kind] = step.limits[kind] and NOW + step.limits[kind]
  end
  for _, at in pairs(ends) do
    nearest = math.min(nearest or at, at)
  end
  step.ends = ends
  if nearest then
    redis.call('ZADD', AGENDA, nearest, 'd' .. place .. ':' .. id)
  else
    redis.call('ZREM', AGENDA, 'd' .. place .. ':' .. id)
  end
end

-- Begin the next attempt of a step that waits for it, in a process that is known.
local function begin_step(id, place, step, owner)
  step.state, step.owner, step.due, step.sends = 'claimed', owner, nil, 0
  step.attempt = (step.attempt or 0) + 1
  limit(id, place, step, { 'attempt', 'heartbeat' }, { 'start' })
  put_step(id, place, step)
  redis.call('ZREM', AGENDA, step_member(id, place))
  redis.call('SADD', held_key(owner), step_member(id, place))
end

-- The workflow wants the step no more. A child run may exist although nobody has said so yet: it is told in any case.
local function cancel_step(id, place, step)
  if step.child then
    step.state, step.sends = 'cancelling', 0
    put_step(id, place, step)
    redis.call('ZREM', AGENDA, 'd' .. place .. ':' .. id)
    redis.call('ZADD', AGENDA, NOW, step_member(id, place))
  else
    forget_step(id, place, step)
    redis.call('HSET', open_key(id), place, 'cancelled')
  end
end

-- Owners, leases and the wake mark -----------------------------------------------------------------------------------

-- By process: asked once per script.
local alive = {}

local function is_alive(owner)
  local process = process_of(owner)
  if alive[process] == nil then
    local ends = redis.call('ZSCORE', OWNERS, process)
    alive[process] = ends and tonumber(ends) > NOW or false
  end
  return alive[process]
end

local function has_unread(id)
  local run = run_of(id)
  if is_closed(run) then return not run.delivered end
  return length_of(id) > (run.read or 0)
end

-- Wait before the next send of a message that was sent `sends` times.
local function wait_after(sends) return math.min(RESEND_AFTER * 2 ^ math.min(sends, 30), RESEND_LIMIT) end

local function arm(id, due, sends)
  run_of(id).sends = sends
  changed[id] = true
  redis.call('ZADD', AGENDA, due, 'r:' .. id)
end

local function give_back(id)
  local run = run_of(id)
  redis.call('SREM', held_key(run.owner), 'r:' .. id)
  run.owner = nil
  changed[id] = true
end

-- The first loss is made good at once; a turn that kills its process again and again must not spin.
local function free_lease(id)
  give_back(id)
  local run = run_of(id)
  run.failures, run.reason = (run.failures or 0) + 1, LOST_TURN
  local wait = run.failures == 1 and 0 or math.min(2 ^ math.min(run.failures - 2, 30), 60) * 1000
  arm(id, NOW + wait, 0)
end

-- An attempt that took too long was not lost: it failed.
local function free_step(id, place, step, why)
  if step.owner then redis.call('SREM', held_key(step.owner), step_member(id, place)) end
  step.state, step.owner, step.sends, step.due = 'pending', nil, 0, nil
  if why ~= ATTEMPT_OVER then step.lost = (step.lost or 0) + 1 end
  step.error = why or LOST_STEP
  limit(id, place, step, {}, { 'attempt', 'heartbeat' })
  put_step(id, place, step)
  redis.call('ZADD', AGENDA, NOW, step_member(id, place))
end

-- Give back all that a dead process held, and forget the process.
local function free_process(process)
  for _, member in ipairs(redis.call('SMEMBERS', held_key(process))) do
    local kind, place, id = string.match(member, '^(%a)([%d.]*):(.*)$')
    local run, step = run_of(id), kind == 's' and step_of(id, place)
    if step then
      free_step(id, place, step)
    elseif run and run.owner then
      free_lease(id)
    end
  end
  redis.call('DEL', held_key(process))
  redis.call('ZREM', OWNERS, process)
  redis.call('SREM', peers_key(process), process)
  alive[process] = false
end

-- Let a process live from now on.
local function keep(process)
  if redis.call('ZADD', OWNERS, NOW + OWNER_TTL, process) == 1 then redis.call('SADD', peers_key(process), process) end
  alive[process] = true
end

-- Before a process takes something in hand: make it known; if it expired, it first loses what it held.
local function join(owner)
  if is_alive(owner) then return end
  local process = process_of(owner)
  if redis.call('ZSCORE', OWNERS, process) then free_process(process) end
  keep(process)
end

-- Whether a live owner other than this one has the run's lease.
local function is_held(id, owner)
  local run = run_of(id)
  return run.owner and run.owner ~= owner and is_alive(run.owner)
end

-- Begin a turn: a new token, and no wake mark.
local function renew_lease(id, owner)
  local run = run_of(id)
  run.token, run.owner, run.sends = (run.token or 0) + 1, owner, nil
  changed[id] = true
  redis.call('ZREM', AGENDA, 'r:' .. id)
end

-- Give the lease under a new token; a repeated call of the same owner finds what it was given. Clears the wake mark.
local function grant(id, owner)
  local run = run_of(id)
  if run.owner == owner then return end
  if run.owner then free_lease(id) end
  join(owner)
  renew_lease(id, owner)
  redis.call('SADD', held_key(owner), 'r:' .. id)
end

-- Mark the run woken if it has something to do and nobody sees to it; give the message if it was not marked, or
-- `again`.
local function wake(id, again)
  local run = run_of(id)
  if run.owner and not is_alive(run.owner) then free_lease(id) end
  if run.owner or not has_unread(id) then return false end
  local is_woken = redis.call('ZSCORE', AGENDA, 'r:' .. id)
  if is_woken and not again then return false end
  if not is_woken then arm(id, NOW + wait_after(0), 1) end
  return run_message(id)
end
