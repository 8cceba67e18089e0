-- renew: keep processes alive, expire at once those that are gone.
-- ARGV: 2 number of processes to keep, then those, then those that are gone
-- Returns: all known processes.

local keep = tonumber(ARGV[2])
for index = 3, 2 + keep do
  local process = ARGV[index]
  if not is_alive(process) then free_process(process) end
  redis.call('ZADD', OWNERS, NOW + OWNER_TTL, process)
end
for index = 3 + keep, #ARGV do
  redis.call('ZADD', OWNERS, 'XX', NOW, ARGV[index])
end
return done(redis.call('ZRANGE', OWNERS, 0, -1))
