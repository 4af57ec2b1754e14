-- heartbeat: registers or renews a host's lease and tells who has lost theirs.
-- KEYS: leases (sorted set, score: expiry in epoch ms of the server), info (hash), draining (set), loads (hash; may be
--   left out); one slot.
-- ARGV: host, lease in ms, info to register with ('' to renew), the host's load ('' or left out: as it was).
-- Returns {'OK' | 'LOST', expired hosts, draining: 0 | 1, live hosts, the server's
--   clock in ms}.
-- Invariant: an identity that has been removed never comes back by renewing; only registering makes one.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local host = ARGV[1]
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], host, ARGV[3])
elseif redis.call('HEXISTS', KEYS[2], host) == 0 then
  return {'LOST', {}, 0, {}, now}
end
if KEYS[4] and ARGV[4] ~= '' then redis.call('HSET', KEYS[4], host, ARGV[4]) end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), host)
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
local live = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
return {'OK', expired, redis.call('SISMEMBER', KEYS[3], host), live, now}
