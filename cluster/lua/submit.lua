-- submit: makes runs durable and queues them; the same run twice is made once.
-- ARGV: retention; batch ('' for a child run); parent id and parent fence ('' without a parent); then per run: id,
--   custom_id, agent, rank of its class (0 is the most valuable), digest of the job, job, deadline ('' | epoch ms |
--   '+ms' from now), max_wait ('' | ms), the agent's version that it is pinned to ('' | version).
-- Returns one integer a run: 1 made, 0 the same job was there already, -1 another job holds the id; or 'STALE' when
--   the parent's fence is not the one given (nothing is made then).
-- Invariant: a run id has at most one record for ever, and a made run is counted once and is in the queue once. A child
--   run, whose custom_id is its lineage, may cause no effects where its parent may not, nor where another branch was
--   promoted for its lineage.
local batch, parent, readonly = ARGV[2], ARGV[3], false
if parent ~= '' then
  local rec = redis.call('HMGET', base .. 'run:' .. parent, 'fence', 'state', 'readonly')
  if rec[1] ~= ARGV[4] or rec[2] ~= 'running' then return 'STALE' end
  readonly = rec[3]
end
local answers = {}
local batch_key = base .. 'batch:' .. batch
local made, jobs = 0, (#ARGV - 4) / 9
-- Class first, then arrival: a counter and not the clock, so that jobs of one millisecond keep their order.
local arrival = redis.call('HINCRBY', base .. 'counts', 'arrivals', jobs) - jobs
local queued, ids = {}, {}
for i = 5, #ARGV, 9 do
  local id = ARGV[i]
  local run = base .. 'run:' .. id
  local digest = redis.call('HGET', run, 'digest')
  if digest then
    answers[#answers + 1] = (digest == ARGV[i + 4]) and 0 or -1
  else
    local deadline = ARGV[i + 6]
    if string.sub(deadline, 1, 1) == '+' then deadline = now + tonumber(string.sub(deadline, 2)) end
    arrival = arrival + 1
    local order = string.format('%.0f', tonumber(ARGV[i + 3]) * 281474976710656 + arrival)
    redis.call('HSET', run, 'state', 'queued', 'version', 2, 'since', now, 'fence', 0, 'agent', ARGV[i + 2],
      'batch', batch, 'custom_id', ARGV[i + 1], 'digest', ARGV[i + 4], 'job', ARGV[i + 5], 'order', order,
      'accepted_ms', now, 'deadline', deadline, 'max_wait', ARGV[i + 7], 'reason', 'queue')
    if ARGV[i + 8] ~= '' then redis.call('HSET', run, 'pinned', ARGV[i + 8]) end
    if parent ~= '' then
      redis.call('HSET', run, 'parent', parent)
      redis.call('SADD', base .. 'children:' .. parent, id)
      local lineage = ARGV[i + 1]
      local holder = redis.call('HGET', base .. 'holders:' .. (string.match(lineage, '^[^/]+') or ''), lineage)
      if readonly or (holder and holder ~= id) then redis.call('HSET', run, 'readonly', 1) end
    end
    count_state(batch, nil, 'queued')
    local bound, longest_wait = tonumber(deadline), tonumber(ARGV[i + 7])
    if longest_wait and (not bound or now + longest_wait < bound) then bound = now + longest_wait end
    if bound then redis.call('ZADD', base .. 'timers', bound, id) end
    queued[#queued + 1] = order
    queued[#queued + 1] = id
    made = made + 1
    ids[made] = id
    answers[#answers + 1] = 1
  end
end
-- In parts: Lua's unpack has a limit of some 8,000 values.
for part = 1, made, 2000 do
  local last = math.min(part + 1999, made)
  redis.call('ZADD', KEYS[1], unpack(queued, 2 * part - 1, 2 * last))
  if batch ~= '' then redis.call('RPUSH', batch_key .. ':runs', unpack(ids, part, last)) end
end
woken = made > 0
if made > 0 and batch ~= '' then
  count(batch_key, 'total', made)
  -- A batch that was over, and was to be forgotten, goes on.
  redis.call('PERSIST', batch_key)
  redis.call('PERSIST', batch_key .. ':runs')
end
settle()
return answers
