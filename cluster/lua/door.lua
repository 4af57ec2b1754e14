-- Part of the scripts that refuse, shed or claim: the law of admission/queue_law.py, retry_calendar.py and
-- partition_queue.py, with the same arithmetic in the same order. Ranks count from 0, lists by rank from 1.
local STALE_MS, SEEN_ONCE, STORE_WAIT_MS, LONGEST_CAP_WAIT_MS = 5000, 2, 30000, 300000
local SHORTEST_MS, NO_ROOM_MS, LONGEST_MS, DEFAULT_MAX_WAIT_MS = 1000, 300000, 86400000, 86400000
local RANKS, EVICT_LOOK = 5, 16
local CLASSES = {'critical', 'high', 'normal', 'low', 'best_effort'}
local NEVER = {after = -1, by_itself = 0}

-- The policy that is in force here, with everything that it does not say.
local function read_policy()
  local raw = redis.call('HGET', base .. 'admission', 'policy')
  local policy = raw and cjson.decode(raw) or {}
  local classes = policy.classes or {}
  for rank = 1, RANKS do
    local each = classes[rank] or {}
    classes[rank] = {ahead_ms = each.ahead_ms or 0, own_ms = each.own_ms or 0, queued = each.queued or 0,
      pace = each.pace or 0, noise = each.noise or 0, more_ms = each.more_ms or -1, room = each.room or 0,
      max_wait_ms = each.max_wait_ms or DEFAULT_MAX_WAIT_MS, share = each.share or 0, open = each.open ~= false}
  end
  policy.classes, policy.agents, policy.tenants = classes, policy.agents or {}, policy.tenants or {}
  policy.at_ms, policy.partitions, policy.period_ms = policy.at_ms or 0, policy.partitions or 1,
    policy.period_ms or 250
  policy.floor_ms, policy.count_bound, policy.bytes_bound = policy.floor_ms or 0, policy.count_bound or 0,
    policy.bytes_bound or 0
  return policy
end

local function agent_of(policy, name)
  local known = policy.agents[name] or {}
  return {cost_ms = known.cost_ms or DEFAULT_COST_MS, p90_ms = known.p90_ms or 0, until_ms = known.until_ms or 0,
    dependency = known.dependency or ''}
end

local function tenant_of(policy, name)
  local known = policy.tenants[name] or policy.tenant_default or {}
  return {weight = known.weight or 1, ranks = known.ranks, left = known.left or -1, until_ms = known.until_ms or 0,
    places = known.places or -1}
end

local function has(list, value)
  if not list then return true end
  for _, each in ipairs(list) do
    if each == value then return true end
  end
  return false
end

-- What this partition knows of its queue: read once a call, and kept up to date in it.
local function read_tally()
  local tally = {queued = {}, queued_ms = {}, fresh = {}, fresh_ms = {}, evicted_ms = {}, slots = {}, net = {}}
  local fields = {'bytes'}
  for rank = 0, RANKS - 1 do
    for _, field in ipairs({'c:' .. rank .. ':queued', 'c:' .. rank .. ':queued_ms', 'recent:fresh:' .. rank,
        'earlier:fresh:' .. rank, 'recent:fresh_ms:' .. rank, 'earlier:fresh_ms:' .. rank,
        'recent:evicted_ms:' .. rank, 'earlier:evicted_ms:' .. rank, 'slot:' .. rank, 'c:' .. rank .. ':aside'}) do
      fields[#fields + 1] = field
    end
  end
  local found = redis.call('HMGET', LOAD, unpack(fields))
  for at = 1, #fields do found[at] = tonumber(found[at] or 0) end
  tally.bytes, tally.count = found[1], 0
  for rank = 1, RANKS do
    local at = 1 + 10 * (rank - 1)
    tally.queued[rank], tally.queued_ms[rank] = found[at + 1], found[at + 2]
    tally.fresh[rank], tally.fresh_ms[rank] = found[at + 3] + found[at + 4], found[at + 5] + found[at + 6]
    tally.evicted_ms[rank], tally.slots[rank] = found[at + 7] + found[at + 8], found[at + 9]
    tally.count = tally.count + found[at + 1] + found[at + 10]
  end
  return tally
end

-- How many more of a tenant's runs are queued here than the policy knows of.
local function net_of(tally, tenant)
  if not tally.net[tenant] then
    local found = redis.call('HMGET', LOAD, 'recent:net:' .. tenant, 'earlier:net:' .. tenant)
    tally.net[tenant] = tonumber(found[1] or 0) + tonumber(found[2] or 0)
  end
  return tally.net[tenant]
end

-- What goes before a run of a class, of which `part` of its own class goes before it: cost, its own class's, runs.
local function ahead(policy, tally, rank, part)
  local age = math.max(0, now - policy.at_ms)
  if age > STALE_MS then
    local better, better_ms = 0, 0
    for each = 1, rank do
      better = better + tally.queued[each]
      better_ms = better_ms + tally.queued_ms[each]
    end
    local own = tally.queued_ms[rank + 1] * part * policy.partitions
    return better_ms * policy.partitions + own, own, (better + tally.queued[rank + 1] * part) * policy.partitions
  end
  local fresh_ms, evicted_ms, queued, fresh = 0, 0, 0, 0
  for each = 1, rank do
    fresh_ms = fresh_ms + tally.fresh_ms[each]
    evicted_ms = evicted_ms + tally.evicted_ms[each]
    queued = queued + policy.classes[each].queued
    fresh = fresh + tally.fresh[each]
  end
  local amount = fresh + tally.fresh[rank + 1]
  local times_seen = amount > SEEN_ONCE and (SEEN_ONCE + (amount - SEEN_ONCE) * policy.partitions) / amount or 1
  local mine = policy.classes[rank + 1]
  local better_ms = math.max(0, mine.ahead_ms - mine.own_ms + fresh_ms * times_seen - evicted_ms * policy.partitions)
  local own_ms = mine.own_ms + tally.fresh_ms[rank + 1] * times_seen - tally.evicted_ms[rank + 1] * policy.partitions
  own_ms = math.max(0, own_ms) * part
  local drained_ms = (policy.drain or 0) * math.min(age, 2 * policy.period_ms)
  local runs = queued + fresh * times_seen + (mine.queued + tally.fresh[rank + 1] * times_seen) * part
  return math.max(0, better_ms + own_ms - drained_ms), math.max(0, own_ms - math.max(0, drained_ms - better_ms)), runs
end

-- The part of its class that goes before an order.
local function part_of(tally, order)
  local rank = rank_of(order)
  local queued = tally.queued[rank + 1]
  if queued == 0 then return 1 end
  local low, high = string.format('%.0f', rank * CLASS_SPAN), '(' .. string.format('%.0f', order)
  return (redis.call('ZCOUNT', KEYS[1], low, high) + 1) / (queued + 1)
end

-- How long a cost takes to be served in a favourable course.
local function favourable(mine, drain, cost)
  local wait = cost * mine.pace
  if wait <= 0 or not drain or drain == 0 then return 0 end
  local root = wait / (math.sqrt(mine.noise * mine.noise + wait) + mine.noise)
  wait = math.max(root * root, cost / drain)
  return mine.more_ms >= 0 and math.min(wait, cost / drain + mine.more_ms) or wait
end

local function predicted(policy, tally, order, agent)
  local rank = rank_of(order)
  local cost, own, runs = ahead(policy, tally, rank, part_of(tally, order))
  local mine = policy.classes[rank + 1]
  local wait, reason = favourable(mine, policy.drain, cost), 'queue'
  if mine.share > 0 and policy.drain and policy.drain > 0 then
    wait = math.min(wait, own / (mine.share * policy.drain))
  end
  if policy.floor_ms > wait then
    wait, reason = policy.floor_ms, policy.floor_reason and policy.floor_reason ~= '' and policy.floor_reason or 'hosts'
  end
  if agent.until_ms - now > wait then wait, reason = agent.until_ms - now, 'dependency:' .. agent.dependency end
  return wait, reason, 1 + math.floor(runs)
end

-- The next slot of a class in the calendar of those that are to come again. `spacings`: how long the run takes of the
-- partition's part of the room that each class has.
local function set_slot(tally, rank, slot)
  tally.slots[rank + 1] = slot
  redis.call('HSET', LOAD, 'slot:' .. rank, string.format('%.17g', slot))
end
local function book(tally, rank, wait, spacings, before)
  local spacing = spacings[rank + 1]
  wait = math.max(wait, SHORTEST_MS)
  if not (spacing < math.huge) then
    local slot = now + math.max(wait, NO_ROOM_MS)
    if slot > before then return NEVER end
    return {after = math.ceil(slot - now), by_itself = 0}
  end
  local slot = math.max(now + wait + spacing * (tonumber(partition, 16) / tally.partitions),
    tally.slots[rank + 1] + spacing)
  if slot > before then return NEVER end
  if slot - now > LONGEST_MS then return {after = LONGEST_MS, by_itself = 0} end
  set_slot(tally, rank, slot)
  -- When it comes it goes first: it takes the room of less valuable ones, too.
  for lower = rank + 1, RANKS - 1 do
    if spacings[lower + 1] < math.huge then
      set_slot(tally, lower, math.max(tally.slots[lower + 1], now + wait) + spacings[lower + 1])
    end
  end
  return {after = math.ceil(slot - now), by_itself = 1}
end

-- The next slot of a tenant that has as many runs queued as it may.
local function book_tenant(tenant, wait, spacing, partitions, before)
  local cursor = tonumber(redis.call('HGET', LOAD, 'slot:t:' .. tenant) or 0)
  local slot = now + wait + spacing * (tonumber(partition, 16) / partitions)
  if cursor > now then slot = math.max(slot, cursor + spacing) end
  if slot > before then return NEVER end
  if slot - now > LONGEST_MS then return {after = LONGEST_MS, by_itself = 0} end
  redis.call('HSET', LOAD, 'slot:t:' .. tenant, string.format('%.17g', slot))
  return {after = math.ceil(slot - now), by_itself = 1}
end

local function come_back(policy, tally, rank, cost, agent, deadline, reason)
  local room = policy.classes[rank + 1].room
  local wait = math.max(policy.floor_ms, agent.until_ms - now)
  if reason == 'store' then wait = math.max(wait, STORE_WAIT_MS) end
  if room > 0 then
    local cost_ahead = ahead(policy, tally, rank, 1)
    wait = math.max(wait, cost_ahead / room)
  end
  local spacings = {}
  for each = 1, RANKS do
    local left = policy.classes[each].room
    spacings[each] = left > 0 and cost * policy.partitions / left or math.huge
  end
  tally.partitions = policy.partitions
  return book(tally, rank, wait, spacings, deadline and deadline - agent.p90_ms or math.huge)
end

-- What is refused whatever is queued: a reason and when to come again, or nil.
local function caps(policy, tally, asked, agent, tenant)
  if not has(tenant.ranks, asked.rank) then return 'tenant_class', NEVER end
  if asked.deadline and asked.deadline < now + math.max(1, agent.p90_ms) then return 'deadline', NEVER end
  if tenant.until_ms > now then
    if asked.deadline and asked.deadline < tenant.until_ms + agent.p90_ms then return 'tenant_cost', NEVER end
    return 'tenant_cost', {after = tenant.until_ms - now, by_itself = 1}
  end
  if tenant.left >= 0 and tenant.left <= net_of(tally, asked.tenant) then
    local mine = policy.classes[asked.rank + 1]
    local wait = math.min(math.max(mine.own_ms * mine.pace, SHORTEST_MS), LONGEST_CAP_WAIT_MS)
    local spacing = asked.cost * policy.partitions * mine.pace
    if policy.dry_run then return 'tenant_queued', NEVER end
    return 'tenant_queued', book_tenant(asked.tenant, math.ceil(wait), spacing, policy.partitions,
      asked.deadline and asked.deadline - agent.p90_ms or math.huge)
  end
end

local function judged(policy, asked, agent, wait, reason, max_wait)
  if not policy.classes[asked.rank + 1].open then return 'store' end
  if wait > max_wait then return reason end
  if asked.deadline and asked.deadline < now + wait + agent.p90_ms then return 'deadline' end
end

-- The runs at the bottom of the queue, the last one first, of so many that are looked at: all facts, and whether they
-- may be shed: those that were never started, and are nobody's child and no fork.
local function bottom()
  local found = {}
  for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, EVICT_LOOK - 1, 'REV')) do
    local run = facts_of(id)
    local rec = redis.call('HMGET', base .. 'run:' .. id, 'parent', 'lineage', 'batch', 'version', 'max_wait',
      'deadline')
    run.evictable = not run.started and not rec[1] and not rec[2]
    run.batch, run.version, run.max_wait = rec[3], rec[4], tonumber(rec[5] or '')
    run.deadline = tonumber(rec[6] or '')
    found[#found + 1] = run
  end
  return found
end

-- What has to leave so that a run of this order fits into the queue's bounds; nil where it may not come.
local function displaced(policy, tally, order, size)
  local over = policy.count_bound > 0 and tally.count + 1 - policy.count_bound or 0
  local over_bytes = policy.bytes_bound > 0 and tally.bytes + size - policy.bytes_bound or 0
  local leaving = {}
  if over <= 0 and over_bytes <= 0 then return leaving end
  for _, run in ipairs(bottom()) do
    if (over <= 0 and over_bytes <= 0) or run.order <= order then break end
    if run.evictable then
      leaving[#leaving + 1] = run
      over, over_bytes = over - 1, over_bytes - run.size
    end
  end
  if over <= 0 and over_bytes <= 0 then return leaving end
end

-- Sheds a queued run that was never started, and says when it may come back.
local function evict(policy, tally, run, reason)
  local rank = run.rank
  unqueue(run.id)
  tally.count, tally.bytes = tally.count - 1, tally.bytes - run.size
  tally.queued[rank + 1], tally.queued_ms[rank + 1] = tally.queued[rank + 1] - 1, tally.queued_ms[rank + 1] - run.cost
  tally.evicted_ms[rank + 1] = tally.evicted_ms[rank + 1] + run.cost
  tally.net[run.tenant] = net_of(tally, run.tenant) - 1
  count(LOAD, 'recent:evicted_ms:' .. rank, run.cost)
  count(LOAD, 'c:' .. rank .. ':evicted_ms', run.cost)
  count(LOAD, 'shed:' .. rank .. ':' .. reason, 1)
  -- First what it was charged goes back, as when any run ends; then its slot.
  local back = come_back(policy, tally, rank, run.cost, agent_of(policy, run.agent), run.deadline, reason)
  redis.call('HSET', base .. 'run:' .. run.id, 'retry_after_ms', back.after, 'by_itself', back.by_itself)
  end_run(run.id, run.batch, run.version, false, 'queued', 'shed', reason, '', '')
end

-- Ends a queued run that was never started and has waited for as long as it may; the caller has taken it out of the
-- queue.
local at_hand
local function outlast(id, batch, version, parent)
  at_hand = at_hand or {policy = read_policy(), tally = read_tally()}
  local run = facts_of(id)
  local back = come_back(at_hand.policy, at_hand.tally, run.rank, run.cost, agent_of(at_hand.policy, run.agent), nil,
    'max_wait')
  redis.call('HSET', base .. 'run:' .. id, 'retry_after_ms', back.after, 'by_itself', back.by_itself)
  count(LOAD, 'shed:' .. run.rank .. ':max_wait', 1)
  end_run(id, batch, version, parent, 'queued', 'shed', 'max_wait', '', '')
end
