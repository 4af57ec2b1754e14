-- hub: keeps what a dependency's hub knows (or the admission controller), for people and for its successor.
-- KEYS: its hash.
-- ARGV: its epoch ('' to begin a new one), its state ('' to begin, or to leave what is there), what people are told
--   ('' or left out: as it was).
-- Returns {epoch, state, override, command, the server's clock in ms}; 'STALE' when a later hub has begun.
-- Invariant: only the hub that began last writes; epochs only grow.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if ARGV[1] == '' then
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
elseif redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return 'STALE'
else
  if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'state', ARGV[2]) end
  if ARGV[3] and ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'explanation', ARGV[3]) end
end
local facts = redis.call('HMGET', KEYS[1], 'epoch', ARGV[1] == '' and 'state' or '-', 'override', 'command')
return {tonumber(facts[1]), facts[2] or '', facts[3] or '', facts[4] or '', now}
