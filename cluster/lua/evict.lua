-- evict: the last runs of the queue go while they would wait for longer than they may. Runs that were started, child
--   runs and forks stay.
-- ARGV: retention; how many at most.
-- Returns how many were shed (or, in a dry run, would have been).
-- Invariant: what goes is what is worth least, and of that the heaviest tenant's newest.
local policy, here = read_policy(), read_here()
local shed, before = 0, '+inf'
if policy and policy.drain then
  while shed < tonumber(ARGV[2]) do
    local last = last_to_shed(before)
    if not last then break end
    local rank = rank_of(last.order)
    local wait, reason = predicted_wait(policy, rank, last.agent, cost_ahead(policy, rank, here, 1))
    local allowed = last.max_wait or policy.classes[rank + 1].max_wait_ms
    if wait <= allowed then break end
    shed = shed + 1
    if policy.dry_run then
      here.gone_ms[rank + 1] = here.gone_ms[rank + 1] + last.cost
      count(LOAD, 'would_evict:' .. rank .. ':' .. reason, 1)
      here.queued[rank + 1], here.queued_ms[rank + 1] = here.queued[rank + 1] - 1, here.queued_ms[rank + 1] - last.cost
      before = '(' .. string.format('%.0f', last.order)
    else
      evict(last, here, reason, later(policy, {rank = rank, agent = last.agent}, here, reason, wait - allowed).retry)
    end
  end
end
settle_here(here)
settle()
return shed
