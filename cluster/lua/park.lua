-- park: a running run is unloaded until its timer is due or one of its children ends.
-- ARGV: retention; then per run: id, fence, host, reason, due ('' | epoch ms), the journal's last link as the owner
--   believes it, number of children, their ids.
-- Returns a flat list of exceptions: id, 'STALE' | 'CANCEL' (it is still running: its owner must cancel it).
-- Invariant: a parked run is in the timers if anything but a child can wake it, and is queued at once if one of its
--   children has ended already, or if it was poked: no wake-up can be lost between the owner's look and its parking.
local exceptions = {}
local i = 2
while i <= #ARGV do
  local id, due, children = ARGV[i], ARGV[i + 4], tonumber(ARGV[i + 6])
  local first = i
  i = i + 7 + children
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'fence', 'state', 'batch', 'order', 'deadline', 'cancel', 'version',
    'torn', 'poked')
  if rec[1] == ARGV[first + 1] and rec[2] == 'running' then
    if rec[6] then
      exceptions[#exceptions + 1] = id
      exceptions[#exceptions + 1] = 'CANCEL'
    else
      redis.call('SREM', base .. 'owned:' .. ARGV[first + 2], id)
      let_go(id)
      if rec[8] then redis.call('HDEL', run, 'torn') end
      go(id, rec[3], rec[7], 'running', 'waiting', 'reason', ARGV[first + 3], 'due', due, 'head',
        ARGV[first + 5])
      local kind = string.match(ARGV[first + 3], '^([^ ]+) ')
      if kind == 'breaker' or kind == 'retry_after' or kind == 'hub' then
        redis.call('HSET', run, 'outage_since', now)
      end
      local ready = rec[9]
      if ready then redis.call('HDEL', run, 'poked') end
      for child = first + 7, i - 1 do
        local state = redis.call('HGET', base .. 'run:' .. ARGV[child], 'state')
        if not state or TERMINAL[state] then ready = true end
      end
      if ready then
        go(id, rec[3], rec[7] + 1, 'waiting', 'queued', 'reason', rec[9] and 'poked' or 'child ended')
        enqueue(id, rec[4], rec[5])
      else
        redis.call('ZADD', base .. 'waiting', now, id)
        local wake = tonumber(due)
        local deadline = tonumber(rec[5])
        if deadline and (not wake or deadline < wake) then wake = deadline end
        if wake then redis.call('ZADD', base .. 'timers', wake, id) end
      end
    end
  elseif rec[1] ~= ARGV[first + 1] or rec[2] ~= 'waiting' then
    exceptions[#exceptions + 1] = id
    exceptions[#exceptions + 1] = 'STALE'
  end
end
settle()
return exceptions
