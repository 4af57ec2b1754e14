-- exchange: the controller's word to a partition, and what the partition has to say.
-- ARGV: retention; version of the policy; policy (JSON; '' leaves the one that is there); guaranteed shares ('' |
--   'RANK=SHARE;…'); '1' where some tenants' running runs are bounded; '1' where such bounds follow: then tenant, how
--   many of its runs may run here at once, …, instead of those that are there.
-- Returns {version in force, clock in ms, counters, places, what is held, {level, max_wait or -1, part} of the run that
--   would be evicted first or {}, best level or -1}; lists are names and values in turns.
-- Invariant: an older policy never replaces a newer one. A controller that makes a policy of what partitions have said
--   does not know what has come since: that stays counted as new until the second exchange after it.
local there, version = tonumber(redis.call('HGET', base .. 'admission', 'v') or 0), tonumber(ARGV[2])
if ARGV[3] ~= '' and version >= there then
  redis.call('HSET', base .. 'admission', 'v', version, 'policy', ARGV[3], 'shares', ARGV[4], 'capped', ARGV[5])
  there = version
  if ARGV[6] == '1' then
    redis.call('DEL', base .. 'places')
    if #ARGV > 6 then redis.call('HSET', base .. 'places', unpack(ARGV, 7)) end
  end
end

local tenants, gone = {}, {}
local counters = redis.call('HGETALL', LOAD)
for i = 1, #counters, 2 do
  local field, value = counters[i], counters[i + 1]
  local stretch, rest = string.match(field, '^(%l+):(.+)$')
  if stretch == 'earlier' then
    gone[#gone + 1] = field
  elseif stretch == 'slot' and string.sub(rest, 1, 2) == 't:' and tonumber(value) <= now then
    gone[#gone + 1] = field
  elseif stretch == 't' then
    local what, tenant = string.match(rest, '^([^:]+):(.*)$')
    tenants[tenant] = tenants[tenant] or {}
    tenants[tenant][what] = value
  end
end
for part = 1, #gone, 4000 do redis.call('HDEL', LOAD, unpack(gone, part, math.min(part + 3999, #gone))) end
for i = 1, #counters, 2 do
  local rest = string.match(counters[i], '^recent:(.+)$')
  if rest then
    redis.call('HDEL', LOAD, counters[i])
    redis.call('HSET', LOAD, 'earlier:' .. rest, counters[i + 1])
  end
end
-- Tenants of whom nothing is here, and nothing has changed since the controller was told so, are forgotten.
for tenant, facts in pairs(tenants) do
  local served = facts.served_ms or '0'
  if tonumber(facts.queued or 0) == 0 and tonumber(facts.running or 0) == 0 then
    if facts.told == served then
      for what in pairs(facts) do redis.call('HDEL', LOAD, 't:' .. what .. ':' .. tenant) end
    else
      redis.call('HSET', LOAD, 't:told:' .. tenant, served)
    end
  elseif facts.told then
    redis.call('HDEL', LOAD, 't:told:' .. tenant)
  end
end

-- Counters of fairness that have fallen behind say nothing any more: who comes back begins where its level is.
local HIGH_WATER = 4398046511104
local kept, old, high = redis.call('HGETALL', FAIR), {}, {}
for i = 1, #kept, 2 do
  local level = string.match(kept[i], '^v:(%d+)$')
  if level then
    times[kept[i]] = tonumber(kept[i + 1])
    local low, above = string.format('%.0f', level * LEVEL_SPAN), string.format('(%.0f', (level + 1) * LEVEL_SPAN)
    if times[kept[i]] >= HIGH_WATER and redis.call('ZCOUNT', KEYS[1], low, above) == 0 then
      high[level] = true
      old[#old + 1] = kept[i]
    end
  end
end
for i = 1, #kept, 2 do
  local level = string.match(kept[i], '^f:(%d+):')
  if level and (high[level] or tonumber(kept[i + 1]) <= (times['v:' .. level] or 0)) then old[#old + 1] = kept[i] end
end
for part = 1, #old, 4000 do redis.call('HDEL', FAIR, unpack(old, part, math.min(part + 3999, #old))) end

local tally, last = read_tally(), {}
for _, run in ipairs(bottom()) do
  if run.evictable and not last[1] then
    last = {run.level, run.max_wait or -1, string.format('%.17g', part_of(tally, run.order))}
  end
end
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local best = head[2] and redis.call('HEXISTS', base .. 'held', 'queue') == 0 and level_of(tonumber(head[2])) or -1
settle()
return {there, now, redis.call('HGETALL', LOAD), redis.call('HGETALL', base .. 'places'),
  redis.call('HGETALL', base .. 'held'), last, best}
