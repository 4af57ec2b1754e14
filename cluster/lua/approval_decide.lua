-- approval_decide: one person's signed word on an approval.
-- ARGV: retention; approval; approver; the decision; how many decisions its maker has seen; what the approval becomes by
--   it: 'approved', 'denied', or '' while more people have to say yes.
-- Returns 'ok'; 'missing'; 'over' (its run has ended, or is to be cancelled); 'twice' (this person has decided); 'again'
--   (somebody has decided meanwhile: look, and say it again); or the state in which nobody can decide it any more.
-- Invariant: a person decides once, before it expires, while the run can go on; what it becomes is said in the knowledge
--   of all decisions before it. The run goes on when there is nothing left to decide.
local id, field = ARGV[2], 'by:' .. ARGV[3]
local key = base .. 'approval:' .. id
local rec = redis.call('HMGET', key, 'state', 'run', 'said', field, 'tool')
if not rec[1] then return 'missing' end
if rec[4] == ARGV[4] then return 'ok' end
local run = redis.call('HMGET', base .. 'run:' .. rec[2], 'state', 'cancel')
if not run[1] or TERMINAL[run[1]] or run[2] then return 'over' end
if expire_approval(id) then return 'expired' end
if rec[1] ~= 'pending' then return rec[1] end
if rec[4] then return 'twice' end
if rec[3] ~= ARGV[5] then return 'again' end
redis.call('HSET', key, field, ARGV[4], 'said', rec[3] + 1)
if ARGV[6] ~= '' then
  close_approval(id, ARGV[6])
  local before = base .. 'decided:' .. rec[5]
  redis.call('ZADD', before, now, id)
  redis.call('ZREMRANGEBYRANK', before, 0, -21)
  redis.call('PEXPIRE', before, retention())
  poke(rec[2], ARGV[6])
else
  redis.call('PUBLISH', name .. ':approvals', 'pending ' .. id)
end
settle()
return 'ok'
