-- cancel: queued and waiting runs end at once; a running one is marked, and its host is told.
-- ARGV: retention; reason; ids …
-- Returns one word a run: 'cancelled', 'asked' (running, or torn: its owner ends it at a step boundary), 'ended', 'unknown'
--   (an effect is unproven: resolve it first), 'missing'. Children go with their parent.
-- Invariant: a terminal run does not change.
local answers = {}
local function cancel(id)
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'state', 'batch', 'host', 'torn')
  for _, child in ipairs(redis.call('SMEMBERS', base .. 'children:' .. id)) do cancel(child) end
  if not rec[1] then return 'missing' end
  if TERMINAL[rec[1]] then return 'ended' end
  if rec[1] == 'confirmation_unknown' then return 'unknown' end
  if rec[1] == 'queued' and rec[4] then
    redis.call('HSET', run, 'cancel', ARGV[2])
    return 'asked'
  end
  if rec[1] == 'running' then
    redis.call('HSET', run, 'cancel', ARGV[2])
    redis.call('PUBLISH', name .. ':host:' .. rec[3], 'cancel ' .. id)
    return 'asked'
  end
  -- A child that ended a line above may have queued this run already: its state is read again.
  local fresh = redis.call('HMGET', run, 'state', 'version', 'parent')
  unqueue(id)
  redis.call('ZREM', base .. 'waiting', id)
  end_run(id, rec[2], fresh[2], fresh[3], fresh[1], 'cancelled', ARGV[2], '', '')
  return 'cancelled'
end
for i = 3, #ARGV do answers[#answers + 1] = cancel(ARGV[i]) end
settle()
return answers
