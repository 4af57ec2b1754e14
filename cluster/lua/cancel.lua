-- cancel: queued and waiting runs end at once; a running one is marked, and its host is told.
-- ARGV: retention; reason; ids …
-- Returns one word a run: 'cancelled', 'asked' (running, or torn: its owner ends it at a step boundary), 'ended',
--   'unknown' (an effect is unproven: the run is marked, and ends once somebody has resolved that), 'missing'. Children go
--   with their parent, also with one that has ended; of more than a thousand runs below those that are named here, the
--   others go with the next fire.
-- Invariant: a terminal run does not change.
local answers = {}
for i = 3, #ARGV do answers[#answers + 1] = cancel_run(ARGV[i], ARGV[2]) end
settle()
return answers
