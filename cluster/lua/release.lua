-- release: the owner hands running runs back to the queue (drain, or a claim whose answer it never got).
-- ARGV: retention; host; reason; then per run: id, fence ('' for "whatever it is, if this host owns it").
-- Returns how many were handed back.
-- Invariant: only runs that this host owns move, and each of them gets a higher fence.
local host, moved = ARGV[2], 0
for i = 4, #ARGV, 2 do
  local id = ARGV[i]
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'state', 'batch', 'order', 'host', 'fence', 'migrations', 'deadline',
    'version', 'torn')
  if rec[1] == 'running' and rec[4] == host and (ARGV[i + 1] == '' or ARGV[i + 1] == rec[5]) then
    redis.call('HINCRBY', run, 'fence', 1)
    redis.call('SREM', base .. 'owned:' .. host, id)
    let_go(id)
    redis.call('HINCRBY', run, 'migrations', 1)
    count(base .. 'counts', 'migrations', 1)
    if rec[2] ~= '' then
      count(base .. 'batch:' .. rec[2], 'migrations', 1)
      if not rec[6] then count(base .. 'batch:' .. rec[2], 'migrated_runs', 1) end
    end
    go(id, rec[2], rec[8], 'running', 'queued', 'reason', ARGV[3])
    enqueue(id, rec[3], not rec[9] and rec[7])
    moved = moved + 1
  end
end
settle()
return moved
