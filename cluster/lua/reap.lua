-- reap: a dead host's runs go back to the queue, each with a higher fence, so that a late owner is refused.
-- ARGV: retention; host; how many at most.
-- Returns {runs moved, runs that the host still owns}.
-- Invariant: once called, this host's identity can claim nothing more in this partition, so that the set only shrinks.
--   A run that is taken from a dead host is torn: an effect of it may be open, which only its journal's reader can
--   tell. So no script ends it while it is queued, but a host does, which looks first; also when it has lost too many
--   hosts (losses: those since its journal has grown for the last time, mark). Parking mends it.
local host, limit = ARGV[2], tonumber(ARGV[3])
redis.call('ZADD', base .. 'dead', now, host)
redis.call('ZREMRANGEBYSCORE', base .. 'dead', '-inf', now - 86400000)
local owned = base .. 'owned:' .. host
local ids = redis.call('SPOP', owned, limit)
for _, id in ipairs(ids) do
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'state', 'batch', 'order', 'host', 'losses', 'mark', 'migrations',
    'version')
  if rec[1] == 'running' and rec[4] == host then
    redis.call('HINCRBY', run, 'fence', 1)
    let_go(id)
    local length = redis.call('LLEN', base .. 'journal:' .. id)
    local losses = (rec[6] and tonumber(rec[6]) == length) and tonumber(rec[5]) + 1 or 1
    redis.call('HINCRBY', run, 'migrations', 1)
    count(base .. 'counts', 'migrations', 1)
    if rec[2] ~= '' then
      count(base .. 'batch:' .. rec[2], 'migrations', 1)
      if not rec[7] then count(base .. 'batch:' .. rec[2], 'migrated_runs', 1) end
    end
    go(id, rec[2], rec[8], 'running', 'queued', 'reason', 'host ' .. host .. ' was lost', 'losses', losses,
      'mark', length, 'torn', 1)
    enqueue(id, rec[3])
  end
end
settle()
return {#ids, redis.call('SCARD', owned)}
