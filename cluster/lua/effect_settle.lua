-- effect_settle: what became of an effect.
-- KEYS: the effect's record.
-- ARGV: owner (run:step), its fence, state ('applied' | 'not_applied' | 'unknown' | 'undone'), receipt, and how long a
--   settled record is kept (ms).
-- Returns 'OK', or 'stale': the record is another owner's, or a later fence's, or says already that the effect was
--   applied and this owner says that it was not, or that it does not know; nothing was written.
-- Invariant: a record that is applied stays so, until its owner has undone it; what is undone stays so, until somebody
--   begins it anew. An owner that was followed by a later one can still say that the effect was applied, since that is
--   true whoever says it, but not that it was not. A record's fence never falls.
local rec = redis.call('HMGET', KEYS[1], 'state', 'owner', 'fence')
local state = ARGV[3]
if rec[1] == 'applied' and rec[2] == ARGV[1] and state == 'applied' then return 'OK' end
if rec[1] == 'undone' and rec[2] == ARGV[1] and (state == 'applied' or state == 'undone') then return 'OK' end
if not rec[1] or rec[2] ~= ARGV[1] or rec[1] == 'undone' then return 'stale' end
if (rec[1] == 'applied') ~= (state == 'undone') then return 'stale' end
if tonumber(rec[3]) > tonumber(ARGV[2]) and state ~= 'applied' and state ~= 'undone' then return 'stale' end
if state == 'undone' then redis.call('HINCRBY', KEYS[1], 'undone', 1) end
local clock = redis.call('TIME')
local later = tonumber(ARGV[2]) > tonumber(rec[3])
redis.call('HSET', KEYS[1], 'state', state, 'receipt', ARGV[4], 'fence', later and ARGV[2] or rec[3], 'settled',
  clock[1] * 1000 + math.floor(clock[2] / 1000))
if state == 'unknown' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return 'OK'
