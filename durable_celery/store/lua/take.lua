-- take: take the run's lease unless a live owner has it, and read the events after those that are known.
-- ARGV: 2 id, 3 owner, 4 known seq
-- Returns: {'turn', turn} or {'refused', reason}.

local id, owner, known = ARGV[2], ARGV[3], tonumber(ARGV[4])
local run = run_of(id)
if not run then return { 'refused', 'unknown' } end
if run.delivered then return { 'refused', 'finished' } end
if is_held(id, owner) then return { 'refused', 'held' } end
grant(id, owner)
return done({ 'turn', turn(id, known) })
