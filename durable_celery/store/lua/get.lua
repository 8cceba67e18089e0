-- get: read a run's record and its open steps.
-- ARGV: 2 id
-- Returns: {record, open commands as {number, text, ...}}, or false.

local id = ARGV[2]
return run_of(id) and { record(id), redis.call('HGETALL', open_key(id)) }
