-- release: give the lease back without a result; the run is woken again after a delay.
-- ARGV: 2 id, 3 owner, 4 delay (ms), 5 reason
-- Returns: whether the lease was the run's (0, 1).

local id, owner, delay, reason = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local run = run_of(id)
if not run or run.owner ~= owner then return 0 end
give_back(id)
run.failures = (run.failures or 0) + 1
run.reason = reason ~= '' and reason or nil
if reason ~= '' and not is_closed(run) then run.status = 'blocked' end
arm(id, NOW + delay, 0)
return done(1)
