-- Part of the scripts that refuse or evict: the law of admission/queue_law.py, with the same arithmetic in the same order.
local STALE_MS, COUNTED_ONCE, NEVER = 5000, 2, -1
local LEAST_RETRY_MS, NO_ROOM_RETRY_MS, STORE_RETRY_MS = 1000, 300000, 30000
local RANKS = 5

-- The policy that is in force here, or nil.
local function read_policy()
  local raw = redis.call('HGET', base .. 'admission', 'policy')
  if not raw then return nil end
  local policy = cjson.decode(raw)
  for rank = 1, RANKS do
    local each = policy.classes and policy.classes[rank] or {}
    each.ahead_ms, each.own_ms, each.pace = each.ahead_ms or 0, each.own_ms or 0, each.pace or 0
    each.room, each.max_wait_ms = each.room or 0, each.max_wait_ms or 86400000
    policy.classes = policy.classes or {}
    policy.classes[rank] = each
  end
  policy.agents, policy.tenants = policy.agents or {}, policy.tenants or {}
  policy.partitions, policy.period_ms = policy.partitions or 1, policy.period_ms or 250
  policy.at_ms, policy.floor_ms = policy.at_ms or 0, policy.floor_ms or 0
  return policy
end

local function agent_of(policy, agent)
  local known = policy and policy.agents[agent] or {}
  return {cost_ms = known.cost_ms or DEFAULT_COST_MS, p90_ms = known.p90_ms or 0, until_ms = known.until_ms or 0,
    dependency = known.dependency or ''}
end

local function tenant_of(policy, tenant)
  local known = policy and (policy.tenants[tenant] or policy.tenant_default) or {}
  return {weight = known.weight or 1, ranks = known.ranks, left = known.left or -1, until_ms = known.until_ms or 0}
end

local function has(list, value)
  if not list then return true end
  for _, each in ipairs(list) do
    if each == value then return true end
  end
  return false
end

-- What this partition knows of its queue: read once a call, and kept up to date in it. Numbers by rank begin at 1.
local function read_here()
  local here = {queued = {}, queued_ms = {}, fresh_ms = {}, gone_ms = {}, slots = {}, fresh_of = {}}
  local fields = {'bytes', 'fresh'}
  for rank = 0, RANKS - 1 do
    for _, field in ipairs({'queued:', 'queued_ms:', 'fresh_ms:', 'fresh_gone_ms:', 'slot:'}) do
      fields[#fields + 1] = field .. rank
    end
  end
  local found = redis.call('HMGET', LOAD, unpack(fields))
  here.size, here.fresh = tonumber(found[1] or 0), tonumber(found[2] or 0)
  here.count = redis.call('ZCARD', KEYS[1])
  for rank = 1, RANKS do
    for offset, part in ipairs({'queued', 'queued_ms', 'fresh_ms', 'gone_ms', 'slots'}) do
      here[part][rank] = tonumber(found[2 + 5 * (rank - 1) + offset] or 0)
    end
  end
  return here
end

local function fresh_of(here, tenant)
  if not here.fresh_of[tenant] then
    here.fresh_of[tenant] = tonumber(redis.call('HGET', LOAD, 'fresh_of:' .. tenant) or 0)
  end
  return here.fresh_of[tenant]
end

-- The part of the queued runs of an order's class that are before it; 1 where there are none.
local function fraction_of(here, order)
  local rank = rank_of(order)
  local all = here.queued[rank + 1]
  if all <= 0 then return 1 end
  local low = string.format('%.0f', rank * CLASS_SPAN)
  return redis.call('ZCOUNT', KEYS[1], low, '(' .. string.format('%.0f', order)) / all
end

local function cost_ahead(policy, rank, here, fraction)
  local better, fresh, gone, all_fresh = 0, 0, 0, 0
  for each = 1, rank do
    better = better + here.queued_ms[each]
    fresh = fresh + here.fresh_ms[each]
    gone = gone + here.gone_ms[each]
  end
  for each = 1, RANKS do all_fresh = all_fresh + here.fresh_ms[each] end
  local own = here.queued_ms[rank + 1] * fraction
  local age = now - policy.at_ms
  if age > STALE_MS then return (better + own) * policy.partitions end
  fresh = fresh + here.fresh_ms[rank + 1] * fraction
  local mean = here.fresh > 0 and all_fresh / here.fresh or 0
  local elsewhere = math.max(0, fresh - COUNTED_ONCE * mean) * (policy.partitions - 1)
  local known = policy.classes[rank + 1]
  gone = (gone + here.gone_ms[rank + 1] * fraction) * policy.partitions
  local told = known.ahead_ms - known.own_ms * (1 - fraction) - gone
  local drained = (policy.drain or 0) * math.min(math.max(age, 0), 2 * policy.period_ms)
  return math.max(0, told + fresh + elsewhere - drained)
end

local function predicted_wait(policy, rank, agent, ahead)
  local wait, reason = -1, 'queue'
  if policy.drain then wait = math.ceil(policy.classes[rank + 1].pace * ahead) end
  if policy.floor_ms > wait and policy.floor_ms > 0 then
    wait, reason = math.ceil(policy.floor_ms), policy.floor_reason or ''
  end
  local known = agent_of(policy, agent)
  if known.until_ms > now and known.until_ms - now > wait then
    wait, reason = known.until_ms - now, 'dependency:' .. known.dependency
  end
  return wait, reason
end

-- Refused until its class has room for it.
local function later(policy, asked, here, reason, least)
  local room = policy.classes[asked.rank + 1].room
  if room <= 0 then return {reason = reason, retry = NO_ROOM_RETRY_MS, by_itself = 0} end
  local earliest = now + math.max(LEAST_RETRY_MS, least)
  local slot = math.max(earliest, here.slots[asked.rank + 1] + agent_of(policy, asked.agent).cost_ms *
    policy.partitions / room)
  here.slots[asked.rank + 1] = slot
  here.slots_moved = true
  return {reason = reason, retry = math.ceil(slot - now), by_itself = 1}
end

-- A refusal, or nil and the predicted wait and whether the last one of the queue has to go.
-- asked: rank, tenant, agent, max_wait (nil), deadline (nil), size, order.
local function refusal(policy, asked, here, outranks)
  local late = asked.deadline and asked.deadline <= now
  if not policy then
    if late then return {reason = 'deadline', retry = NEVER, by_itself = 0} end
    return nil, -1, false
  end
  local tenant, known = tenant_of(policy, asked.tenant), policy.classes[asked.rank + 1]
  if not has(tenant.ranks, asked.rank) then return {reason = 'tenant_class', retry = NEVER, by_itself = 0} end
  local p90 = agent_of(policy, asked.agent).p90_ms
  if late or (asked.deadline and now + p90 > asked.deadline) then
    return {reason = 'deadline', retry = NEVER, by_itself = 0}
  end
  local ahead = cost_ahead(policy, asked.rank, here, fraction_of(here, asked.order))
  local wait, reason = predicted_wait(policy, asked.rank, asked.agent, ahead)
  if known.open == false then return later(policy, asked, here, 'store', math.max(STORE_RETRY_MS, wait)) end
  if tenant.until_ms > now then
    return {reason = 'tenant_cost', retry = math.max(LEAST_RETRY_MS, tenant.until_ms - now), by_itself = 1}
  end
  if tenant.left ~= -1 and fresh_of(here, asked.tenant) >= tenant.left then
    return later(policy, asked, here, 'tenant_queued', wait)
  end
  local max_wait = asked.max_wait or known.max_wait_ms
  if wait > max_wait then return later(policy, asked, here, reason, wait - max_wait) end
  if asked.deadline and now + wait + p90 > asked.deadline then
    return {reason = 'deadline', retry = NEVER, by_itself = 0}
  end
  local count_bound, bytes_bound = policy.count_bound or 0, policy.bytes_bound or 0
  local full = (count_bound > 0 and here.count >= count_bound) or (bytes_bound > 0 and
    here.size + asked.size > bytes_bound)
  if full and not outranks() then return later(policy, asked, here, 'queue_full', wait) end
  return nil, wait, full
end

-- The last runs of the queue that may be shed: those that were never started, and are nobody's child and no fork.
local LOOKED_AT = 20
local function last_to_shed(before)
  for _, id in ipairs(redis.call('ZRANGE', KEYS[1], before, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, LOOKED_AT)) do
    local rec = redis.call('HMGET', base .. 'run:' .. id, 'started_ms', 'parent', 'lineage', 'batch', 'version',
      'order', 'agent', 'max_wait', 'cost', 'size', 'tenant', 'owes')
    if not rec[1] and not rec[2] and not rec[3] and not rec[12] then
      return {id = id, batch = rec[4], version = rec[5], order = tonumber(rec[6]), agent = rec[7],
        max_wait = tonumber(rec[8] or ''), cost = tonumber(rec[9] or 0), size = tonumber(rec[10] or 0),
        tenant = rec[11] or ''}
    end
  end
end

-- Sheds a queued run that was never started, and says when it may come back.
local function evict(run, here, reason, retry)
  local rank = rank_of(run.order)
  unqueue(run.id)
  give_back(run.id)
  here.count, here.size = here.count - 1, here.size - run.size
  here.queued[rank + 1], here.queued_ms[rank + 1] = here.queued[rank + 1] - 1, here.queued_ms[rank + 1] - run.cost
  here.gone_ms[rank + 1] = here.gone_ms[rank + 1] + run.cost
  count(LOAD, 'fresh_gone_ms:' .. rank, run.cost)
  redis.call('HSET', base .. 'run:' .. run.id, 'retry_after_ms', retry)
  end_run(run.id, run.batch, run.version, false, 'queued', 'shed', reason, '', '')
  count(LOAD, 'evicted:' .. rank .. ':' .. reason, 1)
end

-- Writes what has moved, beside what settle() writes.
local function settle_here(here)
  if here.slots_moved then
    for rank = 0, RANKS - 1 do
      redis.call('HSET', LOAD, 'slot:' .. rank, string.format('%.17g', here.slots[rank + 1]))
    end
  end
end

-- Ends a queued run that was never started and has waited for as long as it may; the caller has taken it out of the queue.
local lazy_policy, lazy_here
local function outlast(id, batch, version, parent, order, agent)
  lazy_policy, lazy_here = lazy_policy or read_policy() or false, lazy_here or read_here()
  local rank = rank_of(tonumber(order))
  if lazy_policy then
    local retry = later(lazy_policy, {rank = rank, agent = agent}, lazy_here, 'max_wait', 0).retry
    redis.call('HSET', base .. 'run:' .. id, 'retry_after_ms', retry)
    settle_here(lazy_here)
  end
  count(LOAD, 'evicted:' .. rank .. ':max_wait', 1)
  end_run(id, batch, version, parent, 'queued', 'shed', 'max_wait', '', '')
end
