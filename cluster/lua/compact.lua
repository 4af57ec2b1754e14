-- compact: a checkpoint replaces the journal that led to it.
-- ARGV: retention; id, fence, entries that its owner believes are there, the checkpoint's entry, '1' to keep the old
--   entries in the archive (a run with effects, for its trail).
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
  if ARGV[6] == '1' then
    local old = redis.call('LRANGE', journal, 0, -1)
    for part = 1, #old, 4000 do
      redis.call('RPUSH', base .. 'archive:' .. id, unpack(old, part, math.min(part + 3999, #old)))
    end
  end
  redis.call('DEL', journal)
  redis.call('RPUSH', journal, ARGV[5])
  count(base .. 'counts', 'steps', 1)
  if rec[3] ~= '' then count(base .. 'batch:' .. rec[3], 'steps', 1) end
else
  return 'GAP'
end
settle()
return 'OK'
