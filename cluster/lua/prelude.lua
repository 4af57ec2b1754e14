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
-- Admission (docs/admission.md): a run's order is its level * 2^43 and the virtual time at which its tenant is due; a
-- class has 100 levels. load is a hash of counters: what is queued (queued:RANK, queued_ms:RANK, bytes,
-- queued_of:TENANT), running (running:TENANT) and what was served (served_ms:RANK, served_of:TENANT, agent_…:AGENT).
-- fair has a level's virtual time (v:LEVEL) and its tenants' counters (f:LEVEL:TENANT). admission is what the
-- controller has said, held what people have paused, places who may start how many more.
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
local function charge(cost, weight) return math.max(1, math.floor(cost / weight + 0.5)) end
-- A tenant's counter moves by so much, and never below what its level is being served at.
local function shift(level, tenant, by)
  local counter = 'f:' .. level .. ':' .. tenant
  set_time(counter, math.max(time_of('v:' .. level), time_of(counter) + by))
end

-- The place in the queue of a run that has just come, and what its tenant's counter was charged for it.
local function due(level, tenant, cost, weight)
  local start = math.min(math.max(time_of('v:' .. level), time_of('f:' .. level .. ':' .. tenant)), LEVEL_SPAN - 1)
  local charged = charge(cost, weight)
  set_time('f:' .. level .. ':' .. tenant, start + charged)
  return string.format('%.0f', level * LEVEL_SPAN + start), charged
end

-- Counts a run into the queue (sign 1) or out of it (-1).
local function count_queued(order, cost, tenant, size, sign)
  local rank = rank_of(order)
  count(LOAD, 'queued:' .. rank, sign)
  count(LOAD, 'queued_ms:' .. rank, sign * cost)
  count(LOAD, 'queued_of:' .. tenant, sign)
  count(LOAD, 'bytes', sign * size)
end

-- The same for a run whose facts are not at hand.
local function recount_queued(id, order, sign)
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'cost', 'tenant', 'size')
  count_queued(tonumber(order), tonumber(rec[1] or 0), rec[2] or '', tonumber(rec[3] or 0), sign)
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
  recount_queued(id, order, 1)
  wake(tonumber(order))
end

-- Which hosts a queued run needs: those that serve its agent, in its version once it has been started.
local function need_of(agent, pinned) return agent .. '\n' .. (pinned or '') end

-- Sets a queued run aside, until what it needs is there.
local function set_aside(id, order, need, reason)
  redis.call('ZADD', base .. 'unserved', order, id)
  redis.call('ZADD', base .. 'aside:' .. need, order, id)
  redis.call('SADD', base .. 'needs', need)
  redis.call('HSET', base .. 'run:' .. id, 'reason', reason, 'need', need)
end

-- Takes a queued run out of every index that it may be in.
local function unqueue(id)
  if redis.call('ZREM', base .. 'queue', id) == 1 then
    recount_queued(id, redis.call('HGET', base .. 'run:' .. id, 'order'), -1)
  end
  redis.call('ZREM', base .. 'timers', id)
  if redis.call('ZREM', base .. 'unserved', id) == 1 then
    local rec = redis.call('HMGET', base .. 'run:' .. id, 'need', 'agent', 'pinned')
    local need = rec[1] or need_of(rec[2], rec[3])
    redis.call('ZREM', base .. 'aside:' .. need, id)
    if redis.call('EXISTS', base .. 'aside:' .. need) == 0 then redis.call('SREM', base .. 'needs', need) end
  end
end

-- A run that was never started has left the queue: its tenant is due again as if it had never been there.
local function give_back(id)
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'order', 'tenant', 'charged', 'started_ms')
  if rec[3] and not rec[4] then shift(level_of(tonumber(rec[1])), rec[2], -tonumber(rec[3])) end
end

-- A run holds a slot no more. What it had it for is counted, and when it has ended its tenant's counter is put right.
local function let_go(id, ended)
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'tenant', 'claimed', 'slot_ms', 'charged', 'weight', 'order', 'agent',
    'started_ms')
  local tenant, spent = rec[1] or '', now - tonumber(rec[2] or now)
  local total = tonumber(rec[3] or 0) + spent
  count(LOAD, 'running:' .. tenant, -1)
  count(LOAD, 'served_ms:' .. rank_of(tonumber(rec[6])), spent)
  count(LOAD, 'served_of:' .. tenant, spent)
  if not ended then
    if spent > 0 then redis.call('HSET', run, 'slot_ms', total) end
    return
  end
  -- Costs in whole slots, times in powers of two: the mean and the quantiles of an agent's runs.
  local _, power = math.frexp(math.max(1, now - tonumber(rec[8] or now)))
  count(LOAD, 'agent_runs:' .. rec[7], 1)
  count(LOAD, 'agent_ms:' .. rec[7], total)
  count(LOAD, 'agent_took:' .. (power - 1) .. ':' .. rec[7], 1)
  if rec[4] then
    shift(level_of(tonumber(rec[6])), tenant, charge(total, tonumber(rec[5] or 1)) - tonumber(rec[4]))
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
    if state == 'queued' then give_back(id) end
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
  for field in pairs(changed) do redis.call('HSET', FAIR, field, string.format('%.0f', times[field])) end
  if woken then redis.call('PUBLISH', name .. ':wake', partition .. ' ' .. woken) end
end
