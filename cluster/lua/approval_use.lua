-- approval_use: the approved action is about to begin.
-- ARGV: retention; approval; run; its fence; the use, signed by its host.
-- Returns {word, the use that is recorded ('' for none)}: 'STALE' and 'CANCEL' as approval_ask does; 'missing'; 'used' (the
--   use is this run's: this one, or one from before its host died); 'foreign' (the approval is another run's); or the
--   state in which it cannot be used.
-- Invariant: an approval is used once, by the run that asked for it, while that run has one owner and is not to be
--   cancelled, and before it expires.
local id, run = ARGV[2], ARGV[3]
local rec = redis.call('HMGET', base .. 'run:' .. run, 'fence', 'state', 'cancel')
if rec[1] ~= ARGV[4] or rec[2] ~= 'running' then return {'STALE', ''} end
if rec[3] then return {'CANCEL', ''} end
local key = base .. 'approval:' .. id
local approval = redis.call('HMGET', key, 'state', 'run', 'use')
if not approval[1] then return {'missing', ''} end
if approval[2] ~= run then return {'foreign', ''} end
if expire_approval(id) then return {'expired', ''} end
if approval[1] == 'approved' then
  redis.call('HSET', key, 'state', 'used', 'use', ARGV[5])
  redis.call('PUBLISH', name .. ':approvals', 'used ' .. id)
  return {'used', ARGV[5]}
end
return {approval[1], approval[3] or ''}
