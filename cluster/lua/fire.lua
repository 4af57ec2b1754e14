-- fire: waiting runs whose time has come go back to the queue; runs past their bound end. Old ends leave their index. Children
-- that did not go with their parent in one call go now. Lineages of which nothing is left are forgotten, and approvals
-- whose time is over are closed.
-- ARGV: retention; how many at most.
-- Returns {fired, ms until there is more to do or -1, runs queued or set aside}.
-- Invariant: a run fires at most once for one parking, whoever calls and how often; a queued run does not outlast its
--   deadline or max_wait for want of a host that claims it.
local due = redis.call('ZRANGEBYSCORE', base .. 'timers', '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(due) do
  redis.call('ZREM', base .. 'timers', id)
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'state', 'batch', 'order', 'deadline', 'started_ms',
    'version', 'parent', 'owes', 'order', 'agent')
  local state, late = rec[1], rec[4] and rec[4] ~= '' and tonumber(rec[4]) <= now
  if state == 'waiting' then
    redis.call('ZREM', base .. 'waiting', id)
    if late and rec[8] then
      -- Only a host can undo its effects.
      redis.call('HSET', base .. 'run:' .. id, 'cancel', 'deadline_exceeded')
      go(id, rec[2], rec[6], 'waiting', 'queued', 'reason', 'deadline_exceeded')
      enqueue(id, rec[3])
    elseif late then
      end_run(id, rec[2], rec[6], rec[7], 'waiting', 'cancelled', 'deadline_exceeded', '', '')
    else
      go(id, rec[2], rec[6], 'waiting', 'queued', 'reason', 'timer due')
      enqueue(id, rec[3], rec[4])
    end
  elseif state == 'queued' and not rec[8] and (late or not rec[5]) then
    unqueue(id)
    if late then
      end_run(id, rec[2], rec[6], rec[7], 'queued', 'cancelled', 'deadline_exceeded', '', '')
    else
      outlast(id, rec[2], rec[6], rec[7], rec[9], rec[10])
    end
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'approvals', '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))) do
  if not expire_approval(id) then redis.call('ZREM', base .. 'approvals', id) end
end
redis.call('ZREMRANGEBYSCORE', base .. 'decided', '-inf', now - retention())
doom(redis.call('LPOP', base .. 'doomed', 2 * MOST_DOOMED) or {})
for state in pairs(TERMINAL) do
  redis.call('ZREMRANGEBYSCORE', base .. 'ended:' .. state, '-inf', now - retention(state))
end
for _, root in ipairs(redis.call('ZRANGEBYSCORE', base .. 'lineages', '-inf', now, 'LIMIT', 0, 10)) do
  local left = false
  for _, id in ipairs(redis.call('SMEMBERS', base .. 'branches:' .. root)) do
    left = left or redis.call('EXISTS', base .. 'run:' .. id) == 1
  end
  if left then
    redis.call('ZADD', base .. 'lineages', now + LINEAGE_LOOK_MS, root)
  else
    redis.call('ZREM', base .. 'lineages', root)
    redis.call('DEL', base .. 'branches:' .. root, base .. 'holders:' .. root, base .. 'promotions:' .. root)
  end
end
settle()
local following = redis.call('ZRANGE', base .. 'timers', 0, 0, 'WITHSCORES')
local queued = redis.call('ZCARD', KEYS[1]) + redis.call('ZCARD', base .. 'unserved')
local left = following[2] and math.max(0, following[2] - now) or -1
if redis.call('EXISTS', base .. 'doomed') == 1 then left = 0 end
return {#due, left, queued}
