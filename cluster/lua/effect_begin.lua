-- effect_begin: somebody is about to cause an effect: is it new, has it been caused, is somebody else at it?
-- KEYS: the effect's record.
-- ARGV: owner (run:step), its fence, digest of the arguments, tool, the key that the other side is given, and an owner
--   whose claim is known to be void ('' for none).
-- Returns {word, owner, arguments' digest, receipt, since (ms)} of the record as it was:
--   'new'       it is this owner's now; nobody has called for it
--   'mine'      it was this owner's before: it may have been called
--   'done'      it has been applied: here is the receipt
--   'busy'      another owner is at it
--   'unknown'   another owner does not know whether it was applied
--   'conflict'  the record is of other arguments
--   'stale'     this owner has been followed by one with a higher fence
-- Invariant: between two receipts that say "not applied" a record has one owner; a record that is applied stays so;
--   an owner that was followed by a later one begins nothing, also where the later one has said "not applied".
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local rec = redis.call('HMGET', KEYS[1], 'state', 'owner', 'fence', 'arguments', 'receipt', 'since')
local state, owner, void = rec[1], rec[2], ARGV[6]
local word
if state and state ~= 'applied' and owner == ARGV[1] and tonumber(rec[3]) > tonumber(ARGV[2]) then
  word = 'stale'
elseif not state or state == 'not_applied' or (void ~= '' and owner == void and state == 'begun') then
  word = 'new'
elseif rec[4] ~= ARGV[3] then
  word = 'conflict'
elseif state == 'applied' then
  word = 'done'
elseif owner ~= ARGV[1] then
  word = state == 'unknown' and 'unknown' or 'busy'
else
  word = 'mine'
end
if word == 'new' then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'state', 'begun', 'owner', ARGV[1], 'fence', ARGV[2], 'arguments', ARGV[3],
    'tool', ARGV[4], 'key', ARGV[5], 'since', now)
elseif word == 'mine' then
  redis.call('HSET', KEYS[1], 'fence', ARGV[2])
end
return {word, owner or '', rec[4] or '', rec[5] or '', tonumber(rec[6] or now)}
