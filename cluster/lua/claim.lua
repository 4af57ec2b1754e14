-- claim: the best queued runs become this host's, each with a new fence.
-- ARGV: retention; host; how many at most; then the served agents: name, version, name, version, …
-- Returns 'FENCED' when the host has been declared dead (it must come back under a new identity), else
--   {best level left or -1, {id, fence, agent, custom_id, batch, job, migrations, deadline, accepted_ms, parent,
--   cancel, journal, losses, readonly}, …}; deadline, parent and cancel may be ''. Losses are the hosts that died under
--   the run since its journal has grown for the last time; readonly is 1 where the run may cause no effects.
-- Invariant: a run is in one host's owned set, or in none; its fence rises with every claim. A run whose deadline or
--   max_wait has passed ends here instead (a torn one, and one with effects: with its owner). One whose agent or version this host does not
--   serve, or that is held, or whose tenant may start no more, is set aside with its reason, and comes back to its
--   place in the order as soon as that is over. A class with a guaranteed share gets it, whatever is more valuable.
local host, limit = ARGV[2], tonumber(ARGV[3])
if redis.call('ZSCORE', base .. 'dead', host) then return 'FENCED' end
local served = {}
for i = 4, #ARGV, 2 do served[ARGV[i]] = ARGV[i + 1] end
local held = {}
for _, what in ipairs(redis.call('HKEYS', base .. 'held')) do held[what] = true end
if held.queue then return {-1} end
local places = {}
local function place_of(tenant)
  if places[tenant] == nil then places[tenant] = tonumber(redis.call('HGET', base .. 'places', tenant) or '') or false end
  return places[tenant]
end
local bounded_tenants = redis.call('EXISTS', base .. 'places') == 1

-- Whether what a run was set aside for is there now. Needs of a host: agent and version; others: '' and what is held.
local function has_come(need)
  local agent, pinned = string.match(need, '^(.*)\n(.*)$')
  if agent ~= '' then return served[agent] and (pinned == '' or pinned == served[agent]) end
  local tenant = string.match(pinned, '^tenant:(.*)$')
  return not held[pinned] and not (tenant and bounded_tenants and place_of(tenant) and place_of(tenant) <= 0)
end

for _, need in ipairs(redis.call('SMEMBERS', base .. 'needs')) do
  if has_come(need) then
    local back = redis.call('ZPOPMIN', base .. 'aside:' .. need, limit)
    for i = 1, #back, 2 do
      redis.call('ZREM', base .. 'unserved', back[i])
      if redis.call('HGET', base .. 'run:' .. back[i], 'state') == 'queued' then
        redis.call('ZADD', KEYS[1], back[i + 1], back[i])
        redis.call('HSET', base .. 'run:' .. back[i], 'reason', 'queue')
        recount_queued(back[i], back[i + 1], 1)
      end
    end
    if redis.call('EXISTS', base .. 'aside:' .. need) == 0 then redis.call('SREM', base .. 'needs', need) end
  end
end

-- Why a run is not to be started now: what is held of it, and the reason for people.
local function stopped(agent, tenant, order)
  local rank = 'rank:' .. rank_of(order)
  if held['tenant:' .. tenant] then return 'tenant:' .. tenant, 'paused: tenant ' .. tenant end
  if held['agent:' .. agent] then return 'agent:' .. agent, 'paused: agent ' .. agent end
  if held[rank] then return rank, 'paused: class' end
  if bounded_tenants and place_of(tenant) and place_of(tenant) <= 0 then
    return 'tenant:' .. tenant, 'tenant_running: tenant ' .. tenant .. ' runs as much as it may'
  end
end

-- What is taken off the queue: first what a guaranteed share owes, then the best.
local popped, shares = {}, redis.call('HGET', base .. 'admission', 'shares') or ''
for rank, share in string.gmatch(shares, '(%d+)=([%d.e-]+)') do
  local credit = tonumber(redis.call('HGET', LOAD, 'credit:' .. rank) or 0)
  local low, high = string.format('%.0f', rank * CLASS_SPAN), '(' .. string.format('%.0f', (rank + 1) * CLASS_SPAN)
  while #popped / 2 < limit do
    local first = redis.call('ZRANGE', KEYS[1], low, high, 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    local cost = first[1] and tonumber(redis.call('HGET', base .. 'run:' .. first[1], 'cost') or DEFAULT_COST_MS)
    if not cost or credit < cost then break end
    credit = credit - cost
    redis.call('ZREM', KEYS[1], first[1])
    popped[#popped + 1] = first[1]
    popped[#popped + 1] = first[2]
  end
  redis.call('HSET', LOAD, 'credit:' .. rank, string.format('%.17g', credit))
end
if #popped / 2 < limit then
  for _, each in ipairs(redis.call('ZPOPMIN', KEYS[1], limit - #popped / 2)) do popped[#popped + 1] = each end
end

local MOST_CREDIT_MS = 60000
local claims, taken_ms = {-1}, 0
for i = 1, #popped, 2 do
  local id, order = popped[i], tonumber(popped[i + 1])
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'state', 'agent', 'custom_id', 'batch', 'job', 'migrations', 'deadline',
    'accepted_ms', 'max_wait', 'pinned', 'started_ms', 'parent', 'cancel', 'version', 'fence', 'torn',
    'losses', 'mark', 'inherited', 'readonly', 'owes', 'tenant', 'cost', 'size')
  local version, tenant, cost = served[rec[2]], rec[22] or '', tonumber(rec[23] or 0)
  count_queued(order, cost, tenant, tonumber(rec[24] or 0), -1)
  local bounded = rec[7] ~= '' or rec[9] ~= ''
  local need, reason
  if rec[1] == 'queued' then need, reason = stopped(rec[2], tenant, order) end
  if rec[1] ~= 'queued' then
    -- Only a record that has expired or been removed by hand can be here: it cannot be run.
  elseif rec[7] ~= '' and tonumber(rec[7]) <= now and not rec[16] and not rec[21] then
    redis.call('ZREM', base .. 'timers', id)
    give_back(id)
    end_run(id, rec[4], rec[14], rec[12], 'queued', 'cancelled', 'deadline_exceeded', '', '')
  elseif rec[9] ~= '' and not rec[11] and rec[8] + rec[9] <= now then
    redis.call('ZREM', base .. 'timers', id)
    give_back(id)
    outlast(id, rec[4], rec[14], rec[12], order, rec[2])
  elseif need then
    set_aside(id, popped[i + 1], '\n' .. need, reason)
  elseif not version or (rec[10] and rec[10] ~= version) then
    set_aside(id, popped[i + 1], need_of(rec[2], rec[10]), 'no host serves ' .. rec[2] .. '@' ..
      (rec[10] or '(any version)'))
  else
    local fence, level = rec[15] + 1, level_of(order)
    set_time('v:' .. level, math.max(time_of('v:' .. level), order % LEVEL_SPAN))
    taken_ms = taken_ms + cost
    count(LOAD, 'running:' .. tenant, 1)
    if place_of(tenant) and bounded_tenants then
      places[tenant] = places[tenant] - 1
      count(base .. 'places', tenant, -1)
    end
    redis.call('SADD', base .. 'owned:' .. host, id)
    if bounded then redis.call('ZREM', base .. 'timers', id) end
    local journal, losses = {}, 0
    -- A fork has a past before its first start.
    if rec[11] or rec[19] then journal = redis.call('LRANGE', base .. 'journal:' .. id, 0, -1) end
    if rec[11] then
      go(id, rec[4], rec[14], 'queued', 'running', 'fence', fence, 'host', host, 'reason', '', 'claimed', now)
      if rec[17] and tonumber(rec[18]) == #journal then losses = tonumber(rec[17]) end
    else
      go(id, rec[4], rec[14], 'queued', 'running', 'fence', fence, 'host', host, 'reason', '', 'pinned', version,
        'started_ms', now, 'claimed', now)
    end
    claims[#claims + 1] = {id, fence, rec[2], rec[3], rec[4], rec[5], rec[6] or 0, rec[7], rec[8], rec[12] or '',
      rec[13] or '', journal, losses, rec[20] and 1 or 0}
  end
end
-- A share's credit grows with all that is taken; who has nothing queued saves up no more than a run or two.
for rank, share in string.gmatch(shares, '(%d+)=([%d.e-]+)') do
  local credit = tonumber(redis.call('HGET', LOAD, 'credit:' .. rank) or 0) + tonumber(share) * taken_ms
  redis.call('HSET', LOAD, 'credit:' .. rank, string.format('%.17g', math.min(credit, MOST_CREDIT_MS)))
end
local best = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if best[2] then claims[1] = level_of(tonumber(best[2])) end
settle()
return claims
