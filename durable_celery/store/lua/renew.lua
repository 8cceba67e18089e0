-- renew: keep processes alive, expire at once those that are gone.
-- ARGV: 2 number of processes to keep, then those, then those that are gone
-- Returns: the known processes of their hosts; all, if one of them has no host, or there are none.

local kept = tonumber(ARGV[2])
local peers, has_hosts = {}, #ARGV > 2
for index = 3, #ARGV do
  local process = ARGV[index]
  if index > 2 + kept then
    redis.call('ZADD', OWNERS, 'XX', NOW, process)
  else
    if not is_alive(process) then free_process(process) end
    keep(process)
  end
  peers[peers_key(process)] = true
  has_hosts = has_hosts and string.find(process, ':', 1, true)
end
if not has_hosts then return done(redis.call('ZRANGE', OWNERS, 0, -1)) end
local known = {}
for key in pairs(peers) do
  for _, process in ipairs(redis.call('SMEMBERS', key)) do
    known[#known + 1] = process
  end
end
return done(known)
