-- condemn: a host is declared dead, before its runs are taken away from it.
-- KEYS: leases (sorted set, score: expiry in epoch ms of the server), info (hash); one slot.
-- ARGV: host; 1: only if its lease has run out, 0: whatever it says.
-- Returns 1, or 0: it has renewed its lease meanwhile, and nothing was changed.
-- Invariant: no heartbeat renews the lease of a host that is condemned, so that a host whose lease holds has its runs. Its
--   lease counts as run out for everybody: should who condemned it die as well, others take its runs.
local clock = redis.call('TIME')
local expiry = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[2] == '1' and expiry and tonumber(expiry) > clock[1] * 1000 + math.floor(clock[2] / 1000) then return 0 end
redis.call('ZADD', KEYS[1], 'XX', 0, ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
