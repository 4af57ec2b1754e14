-- policy: puts another policy in force, and keeps the ones before it.
-- KEYS: the policy's hash, its history (list, newest first); one slot.
-- ARGV: version, text, who sets it, why, 'set' (whatever there is) or 'begin' (only where there is none yet), how many
--   are kept in the history, channel of the policy.
-- Returns {'SET' | 'SAME' (it is in force already) | 'KEPT' (there is one, and this was only to begin with),
--   number, since}. The number grows with each change.
-- Invariant: the hash is always the newest entry of the history.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'version', 'number', 'since', 'text')
if held[1] then
  if held[1] == ARGV[1] and held[4] == ARGV[2] then return {'SAME', tonumber(held[2]), tonumber(held[3])} end
  if ARGV[5] == 'begin' then return {'KEPT', tonumber(held[2]), tonumber(held[3])} end
end
local number = redis.call('HINCRBY', KEYS[1], 'number', 1)
local facts = {'version', ARGV[1], 'text', ARGV[2], 'since', now, 'by', ARGV[3], 'why', ARGV[4]}
redis.call('HSET', KEYS[1], unpack(facts))
redis.call('LPUSH', KEYS[2], cjson.encode({
  number = number, version = ARGV[1], text = ARGV[2], since = now, by = ARGV[3], why = ARGV[4]}))
redis.call('LTRIM', KEYS[2], 0, ARGV[6] - 1)
redis.call('PUBLISH', ARGV[7], number)
return {'SET', number, now}
