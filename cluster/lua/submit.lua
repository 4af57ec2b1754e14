-- submit: the door. Makes runs durable and queues them, or refuses them; the same run twice is made once.
-- ARGV: retention; batch ('' for a child run); parent id and parent fence ('' without a parent); then per run: id,
--   custom_id, agent, level, digest of the job, job, deadline ('' | epoch ms | '+ms' from now), max_wait ('' | ms), the
--   agent's version that it is pinned to ('' | version), tenant.
-- Returns one answer a run: {1, place, predicted wait in ms or -1} made (or made again, after it was shed), 0 the same
--   job was there already, -1 another job holds the id, {-2, reason, ms after which to come back or -1 for never,
--   1 to do so without being asked} refused; or 'STALE' when the parent's fence is not the one given (nothing is made
--   then).
-- Invariant: a run id has at most one record for ever, and a made run is counted once and is in the queue once. What is
--   refused leaves nothing but counters. A child run, whose custom_id is its lineage, is never refused; it may cause no
--   effects where its parent may not, nor where another branch was promoted for its lineage.
local batch, parent, readonly = ARGV[2], ARGV[3], false
if parent ~= '' then
  local rec = redis.call('HMGET', base .. 'run:' .. parent, 'fence', 'state', 'readonly')
  if rec[1] ~= ARGV[4] or rec[2] ~= 'running' then return 'STALE' end
  readonly = rec[3]
end
local policy, here = read_policy(), read_here()
local answers, made, ids = {}, 0, {}

-- What a run that is let in costs, and where it goes; or why it is refused.
local function at_the_door(asked, level)
  local weight = tenant_of(policy, asked.tenant).weight
  asked.cost = math.floor(agent_of(policy, asked.agent).cost_ms + 0.5)
  -- Where it would be: its tenant's counter is charged only once it is in.
  local start = math.max(time_of('v:' .. level), time_of('f:' .. level .. ':' .. asked.tenant))
  asked.order = level * LEVEL_SPAN + math.min(start, LEVEL_SPAN - 1)
  asked.weight = weight
  count(LOAD, 'offered_ms:' .. asked.rank, asked.cost)
  if parent ~= '' then return nil, -1 end
  local bottom
  local function outranks()
    bottom = last_to_shed('+inf')
    return bottom and bottom.order > asked.order
  end
  local refused, wait, full = refusal(policy, asked, here, outranks)
  if refused then
    count(LOAD, (policy and policy.dry_run and 'would_refuse:' or 'refused:') .. asked.rank .. ':' .. refused.reason, 1)
    if not (policy and policy.dry_run) then return refused end
    return nil, wait or -1
  end
  if full then
    if policy.dry_run then
      count(LOAD, 'would_evict:' .. rank_of(bottom.order) .. ':queue_full', 1)
    else
      local least = later(policy, {rank = rank_of(bottom.order), agent = bottom.agent}, here, 'queue_full', 0)
      evict(bottom, here, 'queue_full', least.retry)
    end
  end
  return nil, wait
end

local function let_in(id, run, asked, level, at, again)
  local order, charged = due(level, asked.tenant, asked.cost, asked.weight)
  redis.call('HSET', run, 'state', 'queued', 'version', again and again + 1 or 2, 'since', now, 'fence', 0, 'agent', asked.agent,
    'batch', batch, 'custom_id', ARGV[at + 1], 'digest', ARGV[at + 4], 'job', ARGV[at + 5], 'order', order,
    'accepted_ms', now, 'deadline', asked.deadline or '', 'max_wait', ARGV[at + 7], 'reason', 'queue', 'tenant',
    asked.tenant, 'cost', asked.cost, 'size', asked.size, 'charged', charged, 'weight', asked.weight)
  if ARGV[at + 8] ~= '' then redis.call('HSET', run, 'pinned', ARGV[at + 8]) end
  if parent ~= '' then
    redis.call('HSET', run, 'parent', parent)
    redis.call('SADD', base .. 'children:' .. parent, id)
    local lineage = ARGV[at + 1]
    local holder = redis.call('HGET', base .. 'holders:' .. (string.match(lineage, '^[^/]+') or ''), lineage)
    if readonly or (holder and holder ~= id) then redis.call('HSET', run, 'readonly', 1) end
  end
  count_state(batch, again and 'shed', 'queued')
  local bound = asked.deadline
  if asked.max_wait and (not bound or now + asked.max_wait < bound) then bound = now + asked.max_wait end
  if bound then redis.call('ZADD', base .. 'timers', bound, id) end
  redis.call('ZADD', KEYS[1], order, id)
  count_queued(tonumber(order), asked.cost, asked.tenant, asked.size, 1)
  wake(tonumber(order))
  local rank = asked.rank + 1
  here.count, here.size, here.fresh = here.count + 1, here.size + asked.size, here.fresh + 1
  here.queued[rank], here.queued_ms[rank] = here.queued[rank] + 1, here.queued_ms[rank] + asked.cost
  here.fresh_ms[rank] = here.fresh_ms[rank] + asked.cost
  here.fresh_of[asked.tenant] = fresh_of(here, asked.tenant) + 1
  count(LOAD, 'fresh', 1)
  count(LOAD, 'fresh_ms:' .. asked.rank, asked.cost)
  count(LOAD, 'fresh_of:' .. asked.tenant, 1)
end

for i = 5, #ARGV, 10 do
  local id = ARGV[i]
  local run = base .. 'run:' .. id
  local there = redis.call('HMGET', run, 'digest', 'state', 'version', 'batch')
  -- What was shed was never started: the same job may come back, and is the same run then.
  local again = there[1] == ARGV[i + 4] and there[2] == 'shed' and there[4] == batch and tonumber(there[3])
  if there[1] and not again then
    answers[#answers + 1] = (there[1] == ARGV[i + 4]) and 0 or -1
  else
    local deadline = ARGV[i + 6]
    if string.sub(deadline, 1, 1) == '+' then deadline = now + tonumber(string.sub(deadline, 2)) end
    local level = tonumber(ARGV[i + 3])
    local asked = {rank = math.floor(level / 100), tenant = ARGV[i + 9], agent = ARGV[i + 2],
      max_wait = tonumber(ARGV[i + 7]), deadline = tonumber(deadline), size = #ARGV[i + 5]}
    local refused, wait = at_the_door(asked, level)
    if refused then
      answers[#answers + 1] = {-2, refused.reason, refused.retry, refused.by_itself}
    else
      if again then
        redis.call('ZREM', base .. 'ended:shed', id)
        redis.call('PERSIST', run)
        redis.call('HDEL', run, 'ended_ms', 'output', 'error', 'end_seal', 'retry_after_ms')
      end
      let_in(id, run, asked, level, i, again)
      if not again then
        made = made + 1
        ids[made] = id
      end
      answers[#answers + 1] = {1, wait == -1 and -1 or redis.call('ZRANK', KEYS[1], id), wait}
    end
  end
end
-- In parts: Lua's unpack has a limit of some 8,000 values.
if batch ~= '' then
  for part = 1, made, 4000 do
    redis.call('RPUSH', base .. 'batch:' .. batch .. ':runs', unpack(ids, part, math.min(part + 3999, made)))
  end
  if woken then
    count(base .. 'batch:' .. batch, 'total', made)
    -- A batch that was over, and was to be forgotten, goes on.
    redis.call('PERSIST', base .. 'batch:' .. batch)
    redis.call('PERSIST', base .. 'batch:' .. batch .. ':runs')
  end
end
settle_here(here)
settle()
return answers
