-- submit: the door. Makes runs durable and queues them, or refuses them; the same run twice is made once.
-- ARGV: retention; batch ('' for a child run); parent id and parent fence ('' without a parent); then per run: id,
--   custom_id, agent, level, digest of the job, job, deadline ('' | epoch ms | '+ms' from now), max_wait ('' | ms), the
--   agent's version that it is pinned to ('' | version), tenant, '1' where it comes again after a refusal.
-- Returns one answer a run: {1, place in the deployment, predicted wait in ms or -1 where nothing can be predicted} made
--   (or made again, after it was shed), 0 the same job was there already, -1 another job holds the id, {-2, reason, ms after which to come back or -1 for never,
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
local policy, tally = read_policy(), read_tally()
local answers, ids = {}, {}

-- What becomes of a run that asks: a refusal, or nil, its predicted wait and its place.
local function at_the_door(asked)
  local agent, tenant = agent_of(policy, asked.agent), tenant_of(policy, asked.tenant)
  local reason, back
  asked.cost, asked.weight = math.max(1, math.floor(agent.cost_ms + 0.5)), tenant.weight
  if not asked.kept then
    reason, back = caps(policy, tally, asked, agent, tenant)
    if reason and not policy.dry_run then return {reason = reason, back = back} end
  end
  if not asked.again then
    count(LOAD, 'c:' .. asked.rank .. ':offered', 1)
    count(LOAD, 'c:' .. asked.rank .. ':offered_ms', asked.cost)
  end
  local order = asked.level * LEVEL_SPAN + due(asked.level, asked.tenant)
  local wait, because, place = predicted(policy, tally, order, agent)
  local own = asked.max_wait
  asked.max_wait = not asked.kept and (own or policy.classes[asked.rank + 1].max_wait_ms) or nil
  local leaving = {}
  if not asked.kept and not reason then
    reason = judged(policy, asked, agent, wait, because, asked.max_wait)
    if not reason then
      leaving = displaced(policy, tally, order, asked.size)
      if not leaving then reason = 'queue_full' end
    end
  end
  if reason and not policy.dry_run then
    if policy.bytes_bound > 0 and policy.bytes_bound < asked.size then return {reason = reason, back = NEVER} end
    return {reason = reason, back = come_back(policy, tally, asked.rank, asked.cost, agent, asked.deadline, reason)}
  end
  if policy.dry_run and leaving and leaving[1] then
    -- One for one: those before it would not be there any more.
    count(LOAD, 'would:' .. leaving[1].rank .. ':queue_full', 1)
    leaving = {}
  end
  for _, run in ipairs(leaving or {}) do evict(policy, tally, run, 'queue_full') end
  if reason then count(LOAD, 'would:' .. asked.rank .. ':' .. reason, 1) end
  -- What operators only try out ends nothing: the job's own bound does.
  if policy.dry_run and not asked.kept then asked.max_wait = own end
  return nil, wait, place
end

local function let_in(id, run, asked, at, state_version)
  local order = charge(asked.level, asked.tenant, asked.cost, asked.weight)
  local rank = asked.rank
  redis.call('HSET', run, 'state', 'queued', 'version', state_version and state_version + 1 or 2, 'since', now,
    'fence', 0, 'agent', asked.agent, 'batch', batch, 'custom_id', ARGV[at + 1], 'digest', ARGV[at + 4], 'job',
    ARGV[at + 5], 'order', order, 'accepted_ms', now, 'deadline', asked.deadline or '', 'max_wait',
    asked.max_wait or '', 'reason', 'queue', 'tenant', asked.tenant, 'cost', asked.cost, 'size', asked.size, 'weight',
    asked.weight)
  if ARGV[at + 8] ~= '' then redis.call('HSET', run, 'pinned', ARGV[at + 8]) end
  if parent ~= '' then
    redis.call('HSET', run, 'parent', parent)
    redis.call('SADD', base .. 'children:' .. parent, id)
    local lineage = ARGV[at + 1]
    local holder = redis.call('HGET', base .. 'holders:' .. (string.match(lineage, '^[^/]+') or ''), lineage)
    if readonly or (holder and holder ~= id) then redis.call('HSET', run, 'readonly', 1) end
  end
  count_state(batch, state_version and 'shed', 'queued')
  local bound = asked.deadline
  if asked.max_wait and (not bound or now + asked.max_wait < bound) then bound = now + asked.max_wait end
  if bound then redis.call('ZADD', base .. 'timers', bound, id) end
  redis.call('ZADD', KEYS[1], order, id)
  count_queued({id = id, rank = rank, tenant = asked.tenant, cost = asked.cost, size = asked.size}, 1)
  count(LOAD, 'recent:fresh:' .. rank, 1)
  count(LOAD, 'recent:fresh_ms:' .. rank, asked.cost)
  count(LOAD, 'c:' .. rank .. ':accepted', 1)
  if asked.again then count(LOAD, 'c:' .. rank .. ':again', 1) end
  wake(tonumber(order))
  tally.count, tally.bytes, tally.net[asked.tenant] = tally.count + 1, tally.bytes + asked.size,
    net_of(tally, asked.tenant) + 1
  tally.queued[rank + 1], tally.queued_ms[rank + 1] = tally.queued[rank + 1] + 1, tally.queued_ms[rank + 1] + asked.cost
  tally.fresh[rank + 1], tally.fresh_ms[rank + 1] = tally.fresh[rank + 1] + 1, tally.fresh_ms[rank + 1] + asked.cost
end

for i = 5, #ARGV, 11 do
  local id = ARGV[i]
  local run = base .. 'run:' .. id
  local there = redis.call('HMGET', run, 'digest', 'state', 'version', 'batch')
  -- What was shed was never started: the same job may come back, and is the same run then.
  local was_shed = there[1] == ARGV[i + 4] and there[2] == 'shed' and there[4] == batch and tonumber(there[3])
  if there[1] and not was_shed then
    answers[#answers + 1] = (there[1] == ARGV[i + 4]) and 0 or -1
  else
    local deadline = ARGV[i + 6]
    if string.sub(deadline, 1, 1) == '+' then deadline = now + tonumber(string.sub(deadline, 2)) end
    local level = tonumber(ARGV[i + 3])
    local asked = {level = level, rank = math.floor(level / 100), tenant = ARGV[i + 9], agent = ARGV[i + 2],
      max_wait = tonumber(ARGV[i + 7]), deadline = tonumber(deadline), size = #ARGV[i + 5], again = ARGV[i + 10] == '1',
      kept = parent ~= ''}
    local refused, wait, place = at_the_door(asked)
    if refused then
      count(LOAD, 'refused:' .. asked.rank .. ':' .. refused.reason, 1)
      answers[#answers + 1] = {-2, refused.reason, refused.back.after, refused.back.by_itself}
    else
      if was_shed then
        redis.call('ZREM', base .. 'ended:shed', id)
        redis.call('PERSIST', run)
        redis.call('HDEL', run, 'ended_ms', 'output', 'error', 'end_seal', 'retry_after_ms', 'by_itself', 'slot_ms')
      else
        ids[#ids + 1] = id
      end
      let_in(id, run, asked, i, was_shed)
      answers[#answers + 1] = {1, place, (policy.drain or 0) == 0 and wait == 0 and -1 or math.ceil(wait)}
    end
  end
end
-- In parts: Lua's unpack has a limit of some 8,000 values.
if batch ~= '' then
  for part = 1, #ids, 4000 do
    redis.call('RPUSH', base .. 'batch:' .. batch .. ':runs', unpack(ids, part, math.min(part + 3999, #ids)))
  end
  if woken then
    count(base .. 'batch:' .. batch, 'total', #ids)
    -- A batch that was over, and was to be forgotten, goes on.
    redis.call('PERSIST', base .. 'batch:' .. batch)
    redis.call('PERSIST', base .. 'batch:' .. batch .. ':runs')
  end
end
settle()
return answers
