-- effect_begin: somebody is about to cause an effect: is it new, has it been caused, is somebody else at it?
-- KEYS: the effect's record.
-- ARGV: owner (run:step), its fence, digest of the arguments, tool, the key that the other side is given, and an owner
--   whose claim is known to be void ('' for none).
-- Returns {word, owner, arguments' digest, receipt, since (ms)} of the record as it was, and the key that the other side
--   is to be given:
--   'new'       it is this owner's now; nobody has called for it, or what was applied has been undone
--   'mine'      it was this owner's before: it may have been called
--   'done'      it has been applied: here is the receipt
--   'busy'      another owner is at it
--   'unknown'   another owner does not know whether it was applied
--   'conflict'  the record is of other arguments
--   'stale'     this owner has been followed by one with a higher fence
-- Invariant: between two receipts that say "not applied" a record has one owner; a record that is applied stays so;
--   an owner that was followed by a later one begins nothing, also where the later one has said "not applied". What was
--   undone is caused anew with another key: under the first one the other side would answer as if it were still there.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local rec = redis.call('HMGET', KEYS[1], 'state', 'owner', 'fence', 'arguments', 'receipt', 'since', 'key',
  'undone')
local state, owner, void = rec[1], rec[2], ARGV[6]
local word
if state and state ~= 'applied' and owner == ARGV[1] and tonumber(rec[3]) > tonumber(ARGV[2]) then
  word = 'stale'
elseif not state or state == 'not_applied' or state == 'undone'
    or (void ~= '' and owner == void and state == 'begun') then
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
local key, undone = ARGV[5], tonumber(rec[8] or 0)
if word == 'new' then
  if undone > 0 then key = string.sub(redis.sha1hex(key .. ':' .. undone), 1, 24) end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'state', 'begun', 'owner', ARGV[1], 'fence', ARGV[2], 'arguments', ARGV[3],
    'tool', ARGV[4], 'key', key, 'since', now)
  if undone > 0 then redis.call('HSET', KEYS[1], 'undone', undone) end
elseif word == 'mine' then
  key = rec[7]
  redis.call('HSET', KEYS[1], 'fence', ARGV[2])
end
return {word, owner or '', rec[4] or '', rec[5] or '', tonumber(rec[6] or now), key}
