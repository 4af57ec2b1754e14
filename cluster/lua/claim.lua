-- claim: the best queued runs become this host's, each with a new fence.
-- ARGV: retention; host; how many at most; the worst level that is wanted ('' for any: what better waits elsewhere goes
--   first); then the served agents: name, version, name, version, …
-- Returns 'FENCED' when the host has been declared dead (it must come back under a new identity), else
--   {best level left or -1, {id, fence, agent, custom_id, batch, job, migrations, deadline, accepted_ms, parent,
--   cancel, journal, losses, readonly}, …}; deadline, parent and cancel may be ''. Losses are the hosts that died under
--   the run since its journal has grown for the last time; readonly is 1 where the run may cause no effects.
-- Invariant: a run is in one host's owned set, or in none; its fence rises with every claim. A run whose deadline or
--   max_wait has passed ends here instead (a torn one, and one with effects: with its owner). One whose agent or version this host does not
--   serve, or that is held, or whose tenant may start no more, is set aside with its reason, and comes back to its
--   place in the order as soon as that is over. A class with a guaranteed share gets it, whatever is more valuable.
local host, limit, worst = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('ZSCORE', base .. 'dead', host) then return 'FENCED' end
local served = {}
for i = 5, #ARGV, 2 do served[ARGV[i]] = ARGV[i + 1] end
local held = {}
for _, what in ipairs(redis.call('HKEYS', base .. 'held')) do held[what] = true end
if held.queue then return {-1} end
local said = redis.call('HMGET', base .. 'admission', 'shares', 'capped')
local shares, capped, policy = {}, said[2] == '1', nil
for rank, share in string.gmatch(said[1] or '', '(%d+)=([^;]+)') do
  shares[#shares + 1] = {rank = tonumber(rank), share = tonumber(share)}
end

-- How many runs of a tenant may run here at once, and how many do; -1 for any.
local places, running = {}, {}
local function places_of(tenant)
  if not capped then return -1 end
  if not places[tenant] then
    policy = policy or read_policy()
    places[tenant] = tonumber(redis.call('HGET', base .. 'places', tenant) or '') or tenant_of(policy, tenant).places
  end
  return places[tenant]
end
local function running_of(tenant)
  running[tenant] = running[tenant] or tonumber(redis.call('HGET', LOAD, 't:running:' .. tenant) or 0)
  return running[tenant]
end

-- How many of the runs that were set aside for a need may come back now.
local function come_back_now(need)
  local kind, what = string.match(need, '^([^\n]*)\n(.*)$')
  if kind == 'running' then return places_of(what) < 0 and limit or math.min(limit, places_of(what) - running_of(what)) end
  if kind == 'held' then return held[what] and 0 or limit end
  local agent, pinned = string.match(what, '^(.*)\n(.*)$')
  return served[agent] and (pinned == '' or pinned == served[agent]) and limit or 0
end

for _, need in ipairs(redis.call('SMEMBERS', base .. 'needs')) do
  local most = come_back_now(need)
  local back = most > 0 and redis.call('ZPOPMIN', base .. 'aside:' .. need, most) or {}
  for i = 1, #back, 2 do
    redis.call('ZREM', base .. 'unserved', back[i])
    local run = facts_of(back[i])
    count_aside(run, -1)
    if redis.call('HGET', base .. 'run:' .. back[i], 'state') == 'queued' then
      redis.call('ZADD', KEYS[1], back[i + 1], back[i])
      redis.call('HSET', base .. 'run:' .. back[i], 'reason', 'queue')
      count_queued(run, 1)
    end
  end
  if redis.call('EXISTS', base .. 'aside:' .. need) == 0 then redis.call('SREM', base .. 'needs', need) end
end

-- What keeps a run from being started now: a need, and the reason for people.
local function hindrance(run, pinned, version)
  if not version or (pinned and pinned ~= version) then
    return 'agent\n' .. run.agent .. '\n' .. (pinned or ''),
      'no host serves ' .. run.agent .. '@' .. (pinned or '(any version)')
  end
  for _, what in ipairs({'class:' .. (CLASSES[run.rank + 1] or ''), 'tenant:' .. run.tenant, 'agent:' .. run.agent}) do
    if held[what] then return 'held\n' .. what, 'paused: ' .. what end
  end
  local most = places_of(run.tenant)
  if most >= 0 and most <= running_of(run.tenant) then
    return 'running\n' .. run.tenant, 'tenant_running: ' .. most .. ' runs of tenant ' .. run.tenant .. ' at once here'
  end
end

-- What is taken off the queue next. Without guaranteed shares that is the best, so many at a time; else first what a
-- share owes, one at a time.
local credit, queued = {}, {}
for _, each in ipairs(shares) do
  credit[each.rank] = tonumber(redis.call('HGET', LOAD, 'credit:' .. each.rank) or 0)
  queued[each.rank] = tonumber(redis.call('HGET', LOAD, 'c:' .. each.rank .. ':queued') or 0)
end
local function take(most)
  for _, each in ipairs(shares) do
    local low, high = string.format('%.0f', each.rank * CLASS_SPAN), string.format('(%.0f', (each.rank + 1) * CLASS_SPAN)
    local head = redis.call('ZRANGE', KEYS[1], low, high, 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if head[1] and credit[each.rank] >= tonumber(redis.call('HGET', base .. 'run:' .. head[1], 'cost') or 0) then
      redis.call('ZREM', KEYS[1], head[1])
      return head, true
    end
  end
  return redis.call('ZPOPMIN', KEYS[1], #shares > 0 and 1 or most)
end
local function credited(rank, cost)
  for _, each in ipairs(shares) do
    if queued[each.rank] <= 0 then
      credit[each.rank] = 0
    else
      credit[each.rank] = credit[each.rank] + cost * each.share
      if each.rank == rank then credit[each.rank] = math.max(0, credit[each.rank] - cost) end
    end
  end
end

local MOST_LOOKED = 256
local claims, looked = {-1}, 0

local function consider(id, order)
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'state', 'agent', 'custom_id', 'batch', 'job', 'migrations',
    'deadline', 'accepted_ms', 'max_wait', 'pinned', 'started_ms', 'parent', 'cancel', 'version', 'fence', 'torn',
    'losses', 'mark', 'inherited', 'readonly', 'owes', 'tenant', 'cost', 'size', 'outage_since')
  if not rec[1] then
    -- Only a record that has expired or been removed by hand can be here: it cannot be run.
    redis.call('ZREM', base .. 'timers', id)
    return
  end
  local run = {id = id, order = tonumber(order), rank = rank_of(tonumber(order)), level = level_of(tonumber(order)),
    tenant = rec[22] or '', agent = rec[2], cost = tonumber(rec[23] or 0), size = tonumber(rec[24] or 0)}
  count_queued(run, -1)
  if queued[run.rank] then queued[run.rank] = queued[run.rank] - 1 end
  -- It may have ended with its parent, which was before it in this very call.
  if rec[1] ~= 'queued' then return end
  if rec[7] ~= '' and tonumber(rec[7]) <= now and not rec[16] and not rec[21] then
    redis.call('ZREM', base .. 'timers', id)
    end_run(id, rec[4], rec[14], rec[12], 'queued', 'cancelled', 'deadline_exceeded', '', '')
    return
  end
  if rec[9] ~= '' and not rec[11] and rec[8] + rec[9] <= now then
    redis.call('ZREM', base .. 'timers', id)
    outlast(id, rec[4], rec[14], rec[12])
    return
  end
  local version = served[rec[2]]
  local need, reason = hindrance(run, rec[10], version)
  if need then return set_aside(run, order, need, reason) end
  local fence = rec[15] + 1
  set_time('v:' .. run.level, math.max(time_of('v:' .. run.level), run.order % LEVEL_SPAN))
  count(LOAD, 'running', 1)
  count(LOAD, 't:running:' .. run.tenant, 1)
  if running[run.tenant] then running[run.tenant] = running[run.tenant] + 1 end
  credited(run.rank, run.cost)
  redis.call('SADD', base .. 'owned:' .. host, id)
  if rec[7] ~= '' or rec[9] ~= '' then redis.call('ZREM', base .. 'timers', id) end
  local journal, losses = {}, 0
  -- A fork has a past before its first start.
  if rec[11] or rec[19] then journal = redis.call('LRANGE', base .. 'journal:' .. id, 0, -1) end
  if rec[25] then
    redis.call('HINCRBY', base .. 'run:' .. id, 'outage_ms', string.format('%.0f', now - rec[25]))
    redis.call('HDEL', base .. 'run:' .. id, 'outage_since')
  end
  if rec[11] then
    go(id, rec[4], rec[14], 'queued', 'running', 'fence', fence, 'host', host, 'reason', '', 'claimed', now)
    if rec[17] and tonumber(rec[18]) == #journal then losses = tonumber(rec[17]) end
  else
    count(LOAD, 'c:' .. run.rank .. ':started', 1)
    go(id, rec[4], rec[14], 'queued', 'running', 'fence', fence, 'host', host, 'reason', '', 'claimed', now, 'pinned',
      version, 'started_ms', now)
  end
  claims[#claims + 1] = {id, fence, rec[2], rec[3], rec[4], rec[5], rec[6] or 0, rec[7], rec[8], rec[12] or '',
    rec[13] or '', journal, losses, rec[20] and 1 or 0}
end

while #claims - 1 < limit and looked < limit + MOST_LOOKED do
  local popped, owed = take(math.min(limit - (#claims - 1), limit + MOST_LOOKED - looked))
  if not popped[1] then break end
  local left = false
  for i = 1, #popped, 2 do
    -- What a share owes is started whatever waits elsewhere.
    left = left or (worst and not owed and level_of(tonumber(popped[i + 1])) > worst)
    if left then
      redis.call('ZADD', KEYS[1], popped[i + 1], popped[i])
    else
      looked = looked + 1
      consider(popped[i], popped[i + 1])
    end
  end
  if left then break end
end
for _, each in ipairs(shares) do
  redis.call('HSET', LOAD, 'credit:' .. each.rank, string.format('%.17g', credit[each.rank]))
end
local best = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if best[2] then claims[1] = level_of(tonumber(best[2])) end
settle()
return claims
