-- approval_ask: a run asks for an approval, or looks at what has become of it.
-- ARGV: retention; approval; run; its fence; when it expires (epoch ms); tool; the request.
-- Returns 'STALE' (another owner), 'CANCEL' (the run is to be cancelled; nothing was made), or {state, now, use ('' for
--   none), decisions …}.
-- Invariant: only the run's owner makes an approval, and makes it once, however often it asks.
local id, run = ARGV[2], ARGV[3]
local rec = redis.call('HMGET', base .. 'run:' .. run, 'fence', 'state', 'cancel')
if rec[1] ~= ARGV[4] or rec[2] ~= 'running' then return 'STALE' end
if rec[3] then return 'CANCEL' end
local key = base .. 'approval:' .. id
if redis.call('EXISTS', key) == 0 then
  redis.call('HSET', key, 'state', 'pending', 'run', run, 'expires', ARGV[5], 'tool', ARGV[6], 'request', ARGV[7],
    'said', 0)
  redis.call('ZADD', base .. 'approvals', ARGV[5], id)
  redis.call('SADD', base .. 'approvals:' .. run, id)
  redis.call('PUBLISH', name .. ':approvals', 'pending ' .. id)
end
expire_approval(id)
local fields = redis.call('HGETALL', key)
local answer = {'', now, ''}
for i = 1, #fields, 2 do
  if fields[i] == 'state' then
    answer[1] = fields[i + 1]
  elseif fields[i] == 'use' then
    answer[3] = fields[i + 1]
  elseif string.sub(fields[i], 1, 3) == 'by:' then
    answer[#answer + 1] = fields[i + 1]
  end
end
return answer
