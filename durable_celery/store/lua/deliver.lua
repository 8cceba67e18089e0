-- deliver: note that a closed run's end was delivered, give its lease back, begin its retention.
-- ARGV: 2 id, 3 owner
-- Returns: whether the lease was the run's and the run is closed (0, 1).

local id, owner = ARGV[2], ARGV[3]
local run = run_of(id)
if not run or run.owner ~= owner or not is_closed(run) then return 0 end
give_back(id)
run.delivered = 1
-- Not before the logs of its earlier runs, should the retention have become shorter.
redis.call('ZADD', AGENDA, math.max(NOW + RETENTION, run.past or 0), 'x:' .. id)
return done(1)
