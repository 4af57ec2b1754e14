-- evict: the last runs of the queue go while they would wait for longer than they may. Runs that were started, child
--   runs and forks stay.
-- ARGV: retention; how many at most.
-- Returns how many were shed.
-- Invariant: what goes is what is worth least, and of that the heaviest tenant's newest.
local policy, tally = read_policy(), read_tally()
local shed = 0
while shed < tonumber(ARGV[2]) and not policy.dry_run do
  local last
  for _, run in ipairs(bottom()) do
    last = last or (run.evictable and run)
  end
  if not last or not last.max_wait then break end
  local wait, reason = predicted(policy, tally, last.order, agent_of(policy, last.agent))
  if wait <= last.max_wait then break end
  shed = shed + 1
  evict(policy, tally, last, reason)
end
settle()
return shed
