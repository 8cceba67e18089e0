-- start: create a run with its first event, or find the one that is there.
-- ARGV: 2 id, 3 '<digest>\n<name>' , 4 '\n<parent>\n<envelope>', 5 header of RunStarted (JSON), 6 its payload,
--       7 delay (ms, 0: none), 8 expires (ms, '': never), 9 whether the agenda sends its message (0, 1); then perhaps
--       10 the broker's queue and 11 the message that is to be put into it
-- Returns: {created (0, 1), message or false (it is not to be published)}, or {-1, head of the run that has the id}.

local id, identity, rest, header, payload = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local delay, expires = tonumber(ARGV[7]), tonumber(ARGV[8])

local run = run_of(id)
if run then
  local head = head_of(id)
  if string.match(head, '^%d+\n([^\n]*\n[^\n]*)') ~= identity then return { -1, head } end
  local is_waiting = redis.call('ZSCORE', AGENDA, 't0:' .. id)
  return { 0, run.status == 'pending' and not is_waiting and run_message(id) }
end

loaded[id] = { status = 'pending' }
changed[id] = true
local created_at = string.format('%.0f', NOW)
local times = ''
if delay > 0 then times = string.format('%s,"start_at":%.0f', times, NOW + delay) end
if expires then times = string.format('%s,"expires_at":%.0f', times, NOW + expires) end
redis.call('RPUSH', log_key(id), created_at .. '\n' .. identity .. rest)
append(id, string.sub(header, 1, -2) .. times .. '}\n' .. payload)
redis.call('ZADD', PREFIX .. 'index:open', created_at, id)
if delay > 0 then
  redis.call('ZADD', AGENDA, NOW + delay, 't0:' .. id)
  return done({ 1, false })
end
if ARGV[9] == '1' then
  arm(id, NOW, 0)
  return done({ 1, false })
end
local message = wake(id)
if message and ARGV[10] and post(ARGV[10], ARGV[11]) then message = false end
return done({ 1, message })
