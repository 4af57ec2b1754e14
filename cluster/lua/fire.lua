-- fire: waiting runs whose time has come go back to the queue; those past their deadline are cancelled.
-- ARGV: retention; how many at most.
-- Returns {fired, ms until the next one is due or -1}.
-- Invariant: a run fires at most once for one parking, whoever calls and how often.
local due = redis.call('ZRANGEBYSCORE', base .. 'timers', '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(due) do
  redis.call('ZREM', base .. 'timers', id)
  redis.call('ZREM', base .. 'waiting', id)
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'state', 'batch', 'order', 'deadline')
  if rec[1] == 'waiting' then
    if rec[4] ~= '' and tonumber(rec[4]) <= now then
      end_run(id, rec[2], 'waiting', 'cancelled', 'deadline_exceeded', '', '')
    else
      go(id, rec[2], 'waiting', 'queued', 'reason', 'timer due')
      enqueue(id, rec[3])
    end
  end
end
settle()
local following = redis.call('ZRANGE', base .. 'timers', 0, 0, 'WITHSCORES')
return {#due, following[2] and math.max(0, following[2] - now) or -1}
