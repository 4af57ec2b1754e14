-- Shared by every partition script; ALLOWED and TERMINAL stand before it, generated from cluster/lifecycle.py.
-- KEYS[1] is always "<name>:{pNN}:queue": it routes the call, and every other key of the partition is derived from
-- it, so all of them share its slot. ARGV[1] is always the retention of ended runs in milliseconds by state, as
-- "succeeded,failed,cancelled,shed".
-- Indices: queue (by order), unserved and aside:NEED (queued, but no host asked so far serves them), needs (which NEEDs
-- there are), waiting, timers (when a waiting run is due, or a queued one comes to its bound), owned:HOST, unknown,
-- ended:STATE (by time of the end; fire trims each by its state's retention); approvals (pending ones, by expiry), decided
-- (those that are not pending any more, by time), decided:TOOL (the last ones of a tool). approval:ID is a hash,
-- approvals:RUN the set of a run's. The list doomed holds runs that are to be
-- cancelled with their parent, each followed by the reason: what one call left to the next fire.
-- Admission: a run's order is its level * 2^43 and the virtual time at which its tenant is due; a class has 100 levels.
-- load is a hash of counters, each with the name of its statistic (admission/queue_statistics.py): c:RANK:WHAT of
-- classes, t:WHAT:TENANT, a:WHAT:AGENT, refused|shed|would:RANK:REASON, running, bytes; what the controller cannot know
-- of yet, in two stretches (recent:…, earlier:…); slot:RANK, the calendar; credit:RANK, of guaranteed shares.
-- fair has a level's virtual time (v:LEVEL) and its tenants' counters (f:LEVEL:TENANT). admission is what the
-- controller has said, held what people have paused, places how many runs of a tenant may run here at once.
-- Lineages: branches:ROOT has the root and all forks below it, holders:ROOT which branch was promoted for which lineage,
-- promotions:ROOT what was promoted, when, by whom and why; fire looks now and then whether any of a root's runs
-- (lineages, by the time of the next look) is still there. A run with 'readonly' may cause no effects.
local base = string.sub(KEYS[1], 1, -6)
local name, partition = string.match(base, '^(.-):{p(%x+)}:$')
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local LINEAGE_LOOK_MS = 3600000
local LEVEL_SPAN, CLASS_SPAN = 8796093022208, 879609302220800
local LOAD, FAIR = base .. 'load', base .. 'fair'
local DEFAULT_COST_MS = 1000
local deltas, settled, woken = {}, {}, nil
local kept

-- How long a run that ended in this state stays readable; without a state, the longest of all.
local function retention(state)
  if not kept then
    local succeeded, failed, cancelled, shed = string.match(ARGV[1], '^(%d+),(%d+),(%d+),(%d+)$')
    kept = {succeeded = tonumber(succeeded), failed = tonumber(failed), cancelled = tonumber(cancelled),
      shed = tonumber(shed)}
  end
  if state then return kept[state] end
  return math.max(kept.succeeded, kept.failed, kept.cancelled, kept.shed)
end

-- Adds to a counter; one HINCRBY a field at the end of the script, however many runs it served.
local function count(key, field, amount)
  local fields = deltas[key]
  if not fields then fields = {}; deltas[key] = fields end
  fields[field] = (fields[field] or 0) + amount
end

local function count_state(batch, from, to)
  local counts = base .. 'counts'
  if from then count(counts, from, -1) end
  count(counts, to, 1)
  if batch and batch ~= '' then
    local key = base .. 'batch:' .. batch
    if from then count(key, from, -1) end
    count(key, to, 1)
    if TERMINAL[to] or to == 'confirmation_unknown' then settled[batch] = (settled[batch] or 0) + 1 end
  end
end

-- Moves a run along one row of the table; an error for any other pair, since that is a defect of ours. `version` is
-- the state version that the caller has read.
local function go(id, batch, version, from, to, ...)
  if not ALLOWED[from .. '>' .. to] then
    return error('penstock: run ' .. id .. ' may not go from ' .. from .. ' to ' .. to)
  end
  redis.call('HSET', base .. 'run:' .. id, 'state', to, 'version', version + 1, 'since', now, ...)
  count_state(batch, from, to)
end

local function level_of(order) return math.floor(order / LEVEL_SPAN) end
local function rank_of(order) return math.floor(order / CLASS_SPAN) end

-- Fairness (admission/fair_share.py): virtual times and tenants' counters, each read once and written once a call.
local times, changed = {}, {}
local function time_of(field)
  local found = times[field]
  if not found then
    found = tonumber(redis.call('HGET', FAIR, field) or 0)
    times[field] = found
  end
  return found
end
local function set_time(field, to)
  if time_of(field) ~= to then times[field] = to; changed[field] = true end
end
-- The virtual time at which a tenant's next run of a level would start.
local function due(level, tenant) return math.max(time_of('v:' .. level), time_of('f:' .. level .. ':' .. tenant)) end
local function put_finish(level, tenant, finish)
  finish = math.min(finish, LEVEL_SPAN - 1)
  set_time('f:' .. level .. ':' .. tenant, finish > time_of('v:' .. level) and finish or 0)
end
local function charge_of(cost, weight) return math.max(1, math.floor(cost / weight + 0.5)) end

-- The order of a run that comes, whose tenant is charged for it.
local function charge(level, tenant, cost, weight)
  local start = due(level, tenant)
  put_finish(level, tenant, start + charge_of(cost, weight))
  return string.format('%.0f', level * LEVEL_SPAN + start)
end

-- What a run's counters need to know of it; `order` a number, `weight` what its tenant's was when it was charged.
local function facts_of(id)
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'order', 'tenant', 'agent', 'cost', 'weight', 'size',
    'started_ms', 'slot_ms', 'claimed', 'outage_ms')
  local order = tonumber(rec[1] or 0)
  return {id = id, order = order, rank = rank_of(order), level = level_of(order), tenant = rec[2] or '',
    agent = rec[3] or '', cost = tonumber(rec[4] or 0), weight = tonumber(rec[5] or 1), size = tonumber(rec[6] or 0),
    started = tonumber(rec[7] or ''), used = tonumber(rec[8] or 0), claimed = tonumber(rec[9] or ''),
    outage = tonumber(rec[10] or 0)}
end

-- A run is here (sign 1) or not any more (-1), in the queue or set aside.
local function count_here(run, sign)
  count(LOAD, 'bytes', sign * run.size)
  count(LOAD, 't:queued:' .. run.tenant, sign)
  count(LOAD, 'recent:net:' .. run.tenant, sign)
end
local function count_queued(run, sign)
  count(LOAD, 'c:' .. run.rank .. ':queued', sign)
  count(LOAD, 'c:' .. run.rank .. ':queued_ms', sign * run.cost)
  count(LOAD, 't:queued_ms' .. run.rank .. ':' .. run.tenant, sign * run.cost)
  count_here(run, sign)
end
local function count_aside(run, sign)
  count(LOAD, 'c:' .. run.rank .. ':aside', sign)
  count(LOAD, 'c:' .. run.rank .. ':aside_ms', sign * run.cost)
  count_here(run, sign)
end

-- What a run was charged is given back where it never started, and put right by what it took where it did.
local function settle_charge(run)
  if run.started then
    put_finish(run.level, run.tenant, due(run.level, run.tenant) + math.floor((run.used - run.cost) / run.weight + 0.5))
  else
    put_finish(run.level, run.tenant, due(run.level, run.tenant) - charge_of(run.cost, run.weight))
  end
end

-- A queue has got something: hosts are told the best level of it.
local function wake(order)
  local level = level_of(order)
  if not woken or level < woken then woken = level end
end

-- Puts a run into the queue at the place that its order gives, and its bound into the timers.
local function enqueue(id, order, bound)
  redis.call('ZADD', base .. 'queue', order, id)
  if bound and bound ~= '' then redis.call('ZADD', base .. 'timers', bound, id) end
  count_queued(facts_of(id), 1)
  wake(tonumber(order))
end

-- Sets a queued run aside, until what it needs is there: a kind (agent, held, running), a line break and what of it.
local function set_aside(run, order, need, reason)
  redis.call('ZADD', base .. 'unserved', order, run.id)
  redis.call('ZADD', base .. 'aside:' .. need, order, run.id)
  redis.call('SADD', base .. 'needs', need)
  redis.call('HSET', base .. 'run:' .. run.id, 'reason', reason, 'need', need)
  count_aside(run, 1)
end

-- Takes a queued run out of every index that it may be in.
local function unqueue(id)
  redis.call('ZREM', base .. 'timers', id)
  if redis.call('ZREM', base .. 'queue', id) == 1 then
    count_queued(facts_of(id), -1)
  elseif redis.call('ZREM', base .. 'unserved', id) == 1 then
    local need = redis.call('HGET', base .. 'run:' .. id, 'need')
    redis.call('ZREM', base .. 'aside:' .. need, id)
    if redis.call('EXISTS', base .. 'aside:' .. need) == 0 then redis.call('SREM', base .. 'needs', need) end
    count_aside(facts_of(id), -1)
  end
end

-- A run holds a slot no more; what it had it for is counted.
local function let_go(id)
  local run = facts_of(id)
  local spent = now - (run.claimed or now)
  count(LOAD, 'running', -1)
  count(LOAD, 't:running:' .. run.tenant, -1)
  count(LOAD, 't:served_ms:' .. run.tenant, spent)
  run.used = run.used + spent
  if spent > 0 then redis.call('HSET', base .. 'run:' .. id, 'slot_ms', run.used) end
  return run
end

-- The counters of a run that ends. Of those that succeeded it counts how long they took, in powers of two: without the
-- time in which a dependency was down, which says nothing of runs to come.
local MOST_BUCKETS = 40
local function count_end(id, from, to)
  local run = from == 'running' and let_go(id) or facts_of(id)
  settle_charge(run)
  if from == 'queued' or not run.started then return end
  count(LOAD, 'a:ended:' .. run.agent, 1)
  count(LOAD, 'a:cost_ms:' .. run.agent, run.used)
  if to == 'succeeded' then
    local _, power = math.frexp(math.max(1, now - run.started - run.outage))
    count(LOAD, 'a:service' .. (math.min(MOST_BUCKETS, power) - 1) .. ':' .. run.agent, 1)
  end
end

-- What a parent does when one of its children has ended: a waiting parent is queued, a running one's host is told.
local function tell_parent(parent)
  local rec = redis.call('HMGET', base .. 'run:' .. parent, 'state', 'batch', 'order', 'host', 'deadline',
    'version')
  if rec[1] == 'waiting' then
    redis.call('ZREM', base .. 'waiting', parent)
    redis.call('ZREM', base .. 'timers', parent)
    go(parent, rec[2], rec[6], 'waiting', 'queued', 'reason', 'child ended')
    enqueue(parent, rec[3], rec[5])
  elseif rec[1] == 'running' then
    redis.call('PUBLISH', name .. ':host:' .. rec[4], 'child ' .. parent)
  end
end

-- What a run waits for beside timers and children may have come true: a waiting run is queued; a running one's host is
-- told, and a mark makes sure that it is not parked before it has looked again.
local function poke(id, reason)
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'state', 'batch', 'order', 'host', 'deadline', 'version')
  if rec[1] == 'waiting' then
    redis.call('ZREM', base .. 'waiting', id)
    redis.call('ZREM', base .. 'timers', id)
    go(id, rec[2], rec[6], 'waiting', 'queued', 'reason', reason)
    enqueue(id, rec[3], rec[5])
  elseif rec[1] == 'running' then
    redis.call('HSET', base .. 'run:' .. id, 'poked', 1)
    redis.call('PUBLISH', name .. ':host:' .. rec[4], 'poke ' .. id)
  end
end

-- An approval is not pending any more: nobody can decide it.
local function close_approval(id, state)
  redis.call('HSET', base .. 'approval:' .. id, 'state', state, 'closed', now)
  redis.call('ZREM', base .. 'approvals', id)
  redis.call('ZADD', base .. 'decided', now, id)
  redis.call('PUBLISH', name .. ':approvals', state .. ' ' .. id)
end

-- Closes an approval whose time is over, also one that was approved and not used; whether it is.
local function expire_approval(id)
  local rec = redis.call('HMGET', base .. 'approval:' .. id, 'state', 'expires')
  if (rec[1] ~= 'pending' and rec[1] ~= 'approved') or tonumber(rec[2]) > now then return false end
  close_approval(id, 'expired')
  return true
end

-- The approvals of a run that has ended: what is open is void, and all are kept as long as the run.
local function close_approvals(id, keep)
  local asked = redis.call('SMEMBERS', base .. 'approvals:' .. id)
  for _, approval in ipairs(asked) do
    local state = redis.call('HGET', base .. 'approval:' .. approval, 'state')
    if state == 'pending' or state == 'approved' then close_approval(approval, 'void') end
    redis.call('PEXPIRE', base .. 'approval:' .. approval, keep)
  end
  if #asked > 0 then redis.call('PEXPIRE', base .. 'approvals:' .. id, keep) end
end

local end_run, cancel_run

-- Cancels runs, and their children, and theirs: `more` is id, reason, id, reason, … The server does nothing else
-- meanwhile, and each run costs it about ten commands, so that one call takes MOST_DOOMED of them at most, however deep
-- and wide the tree is (a worklist: nothing recurses). It notes down the others, which costs one value each, and
-- fire goes on with them.
local MOST_DOOMED = 1000
local doomed, dooming, taken = {}, false, 0
local function doom(more)
  for i = 1, #more do doomed[#doomed + 1] = more[i] end
  if dooming then return end
  dooming = true
  while #doomed > 0 and taken < MOST_DOOMED do
    local reason = table.remove(doomed)
    taken = taken + 1
    cancel_run(table.remove(doomed), reason)
  end
  dooming = false
  for part = 1, #doomed, 4000 do
    redis.call('RPUSH', base .. 'doomed', unpack(doomed, part, math.min(part + 3999, #doomed)))
  end
  doomed = {}
end

local function doom_children(id, reason)
  local more = {}
  for _, child in ipairs(redis.call('SMEMBERS', base .. 'children:' .. id)) do
    more[#more + 1] = child
    more[#more + 1] = reason
  end
  doom(more)
end

-- Cancels a run, and its children after it, so that they do not wake a parent that ends; cancel.lua has the words.
cancel_run = function(id, reason)
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'state', 'batch', 'host', 'torn', 'version', 'parent', 'owes')
  local state, answer = rec[1], nil
  if not state then
    answer = 'missing'
  elseif TERMINAL[state] then
    answer = 'ended'
  elseif state == 'confirmation_unknown' then
    -- Its effect has to be settled first; then its host ends it.
    redis.call('HSET', run, 'cancel', reason)
    answer = 'unknown'
  elseif state == 'running' or rec[4] or rec[7] then
    redis.call('HSET', run, 'cancel', reason)
    if state == 'running' then redis.call('PUBLISH', name .. ':host:' .. rec[3], 'cancel ' .. id) end
    if state == 'waiting' then poke(id, reason) end
    answer = 'asked'
  else
    unqueue(id)
    redis.call('ZREM', base .. 'waiting', id)
    end_run(id, rec[2], rec[5], rec[6], state, 'cancelled', reason, '', '')
    return 'cancelled'
  end
  doom_children(id, reason)
  return answer
end

-- Ends a run: state, outcome, index, expiry, its parent (false: none). The caller has taken it out of where it was.
-- `anchor`: fields by which its owner has sealed the end; a run that the store ends has none.
-- Its children go with it unless it succeeded. It has its end before them, so that none of theirs wakes it.
local UNSEALED = {'end_seal', ''}
end_run = function(id, batch, version, parent, from, to, reason, output, failure, anchor)
  local run = base .. 'run:' .. id
  count_end(id, from, to)
  go(id, batch, version, from, to, 'reason', reason, 'output', output, 'error', failure, 'ended_ms', now,
    unpack(anchor or UNSEALED))
  redis.call('ZADD', base .. 'ended:' .. to, now, id)
  local keep = retention(to)
  redis.call('PEXPIRE', run, keep)
  redis.call('PEXPIRE', base .. 'journal:' .. id, keep)
  redis.call('PEXPIRE', base .. 'archive:' .. id, keep)
  redis.call('PEXPIRE', base .. 'children:' .. id, keep)
  close_approvals(id, keep)
  if parent then tell_parent(parent) end
  if to ~= 'succeeded' then doom_children(id, 'parent ended') end
end

-- Writes the counters and tells whoever listens; every script ends with it.
local function settle()
  for key, fields in pairs(deltas) do
    for field, amount in pairs(fields) do
      if amount ~= 0 then redis.call('HINCRBY', key, field, string.format('%.0f', amount)) end
    end
  end
  for batch, amount in pairs(settled) do
    -- A batch is forgotten when all of it is over, and not while one of its runs sleeps for a month.
    local key, left = base .. 'batch:' .. batch, 0
    for _, held in ipairs(redis.call('HMGET', key, 'queued', 'running', 'waiting', 'confirmation_unknown')) do
      left = left + (tonumber(held or 0))
    end
    if left == 0 then
      redis.call('PEXPIRE', key, retention())
      redis.call('PEXPIRE', key .. ':runs', retention())
    end
    redis.call('PUBLISH', name .. ':batch:' .. batch, amount)
  end
  for field in pairs(changed) do if times[field] > 0 then
      redis.call('HSET', FAIR, field, string.format('%.0f', times[field]))
    else
      redis.call('HDEL', FAIR, field)
    end
  end
  if woken then redis.call('PUBLISH', name .. ':wake', partition .. ' ' .. woken) end
end
