-- exchange: the controller's word to a partition, and what the partition has to say.
-- ARGV: retention; version of the policy; policy (JSON; '' leaves the one that is there); guaranteed shares ('' |
--   'RANK=SHARE;…'); then per tenant whose running runs are bounded: tenant, places to add (a negative number takes some
--   back), and 'off' where there is no bound any more.
-- Returns {version in force, what changed places, counters, virtual times of levels, best level or -1, since when the
--   first run waits or 0, queued runs}: flat lists of names and values.
-- Invariant: an older policy never replaces a newer one. Of the places that were added, none is counted twice: what a
--   claim took is gone, and what is taken back was there.
local there = tonumber(redis.call('HGET', base .. 'admission', 'v') or 0)
local version = tonumber(ARGV[2])
if ARGV[3] ~= '' and version > there then
  redis.call('HSET', base .. 'admission', 'v', version, 'policy', ARGV[3], 'shares', ARGV[4])
  there = version
  -- What has come since the policy was made is counted from here on.
  local fields = redis.call('HKEYS', LOAD)
  local old = {}
  for _, field in ipairs(fields) do
    if string.sub(field, 1, 5) == 'fresh' then old[#old + 1] = field end
  end
  if #old > 0 then redis.call('HDEL', LOAD, unpack(old)) end
end
local changes = {}
for i = 5, #ARGV, 2 do
  local tenant = ARGV[i]
  if ARGV[i + 1] == 'off' then
    redis.call('HDEL', base .. 'places', tenant)
  else
    local had = tonumber(redis.call('HGET', base .. 'places', tenant) or 0)
    local has = math.max(0, had + tonumber(ARGV[i + 1]))
    redis.call('HSET', base .. 'places', tenant, has)
    changes[#changes + 1] = tenant
    changes[#changes + 1] = has
    if has > had and redis.call('EXISTS', base .. 'aside:\ntenant:' .. tenant) == 1 then
      woken = woken or level_of(tonumber(redis.call('ZRANGE', base .. 'aside:\ntenant:' .. tenant, 0, 0, 'WITHSCORES')[2]))
    end
  end
end
-- Counters of tenants that have fallen behind say nothing any more: who comes back begins where its level is.
local kept = redis.call('HGETALL', FAIR)
local levels, counters = {}, {}
for i = 1, #kept, 2 do
  local level = string.match(kept[i], '^v:(%d+)$')
  if level then
    levels[#levels + 1] = level
    levels[#levels + 1] = kept[i + 1]
    times[kept[i]] = tonumber(kept[i + 1])
  end
end
for i = 1, #kept, 2 do
  local level = string.match(kept[i], '^f:(%d+):')
  if level and tonumber(kept[i + 1]) <= (times['v:' .. level] or 0) then counters[#counters + 1] = kept[i] end
end
for part = 1, #counters, 4000 do
  redis.call('HDEL', FAIR, unpack(counters, part, math.min(part + 3999, #counters)))
end
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local since = head[1] and tonumber(redis.call('HGET', base .. 'run:' .. head[1], 'since') or 0) or 0
local best = head[2] and level_of(tonumber(head[2])) or -1
settle()
return {there, changes, redis.call('HGETALL', LOAD), levels, best, since, redis.call('ZCARD', KEYS[1])}
