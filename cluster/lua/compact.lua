-- compact: a checkpoint replaces the journal that led to it.
-- ARGV: retention; id, fence, entries that its owner believes are there, the checkpoint's entry.
-- Returns 'OK', 'STALE' or 'GAP' as append does.
-- Invariant: the journal is either the old one or just the checkpoint, and only the owner's call changes it.
local id = ARGV[2]
local rec = redis.call('HMGET', base .. 'run:' .. id, 'fence', 'state', 'batch')
if rec[1] ~= ARGV[3] or rec[2] ~= 'running' then return 'STALE' end
local journal = base .. 'journal:' .. id
local length = redis.call('LLEN', journal)
if length == 1 and redis.call('LINDEX', journal, 0) == ARGV[5] then
  -- Sent again: it has been done.
elseif length == tonumber(ARGV[4]) then
  redis.call('DEL', journal)
  redis.call('RPUSH', journal, ARGV[5])
  count(base .. 'counts', 'steps', 1)
  if rec[3] ~= '' then count(base .. 'batch:' .. rec[3], 'steps', 1) end
else
  return 'GAP'
end
settle()
return 'OK'
