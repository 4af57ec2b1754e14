-- claim: the best queued runs become this host's, each with a new fence.
-- ARGV: retention; host; how many at most; then the served agents: name, version, name, version, …
-- Returns 'FENCED' when the host has been declared dead (it must come back under a new identity), else
--   {left in the queue, {id, fence, agent, custom_id, batch, job, migrations, deadline, accepted_ms, parent,
--   cancel, journal, losses, readonly}, …}; deadline, parent and cancel may be ''. Losses are the hosts that died under
--   the run since its journal has grown for the last time; readonly is 1 where the run may cause no effects.
-- Invariant: a run is in one host's owned set, or in none; its fence rises with every claim. A run whose deadline or
--   max_wait has passed ends here instead (a torn one, and one with effects: with its owner). One whose agent or version this host does not
--   serve is set aside with its reason, and comes back to its place in the order as soon as a host claims that serves it.
local host, limit = ARGV[2], tonumber(ARGV[3])
if redis.call('ZSCORE', base .. 'dead', host) then return 'FENCED' end
local served = {}
for i = 4, #ARGV, 2 do served[ARGV[i]] = ARGV[i + 1] end
for _, need in ipairs(redis.call('SMEMBERS', base .. 'needs')) do
  local agent, pinned = string.match(need, '^(.*)\n(.*)$')
  if served[agent] and (pinned == '' or pinned == served[agent]) then
    local back = redis.call('ZPOPMIN', base .. 'aside:' .. need, limit)
    for i = 1, #back, 2 do
      redis.call('ZREM', base .. 'unserved', back[i])
      if redis.call('HGET', base .. 'run:' .. back[i], 'state') == 'queued' then
        redis.call('ZADD', KEYS[1], back[i + 1], back[i])
        redis.call('HSET', base .. 'run:' .. back[i], 'reason', 'queue')
      end
    end
    if redis.call('EXISTS', base .. 'aside:' .. need) == 0 then redis.call('SREM', base .. 'needs', need) end
  end
end
local popped = redis.call('ZPOPMIN', KEYS[1], limit)
local claims = {0}
for i = 1, #popped, 2 do
  local id = popped[i]
  local run = base .. 'run:' .. id
  local rec = redis.call('HMGET', run, 'state', 'agent', 'custom_id', 'batch', 'job', 'migrations', 'deadline',
    'accepted_ms', 'max_wait', 'pinned', 'started_ms', 'parent', 'cancel', 'version', 'fence', 'torn',
    'losses', 'mark', 'inherited', 'readonly', 'owes')
  local version = served[rec[2]]
  local bounded = rec[7] ~= '' or rec[9] ~= ''
  if rec[1] ~= 'queued' then
    -- Only a record that has expired or been removed by hand can be here: it cannot be run.
  elseif rec[7] ~= '' and tonumber(rec[7]) <= now and not rec[16] and not rec[21] then
    redis.call('ZREM', base .. 'timers', id)
    end_run(id, rec[4], rec[14], rec[12], 'queued', 'cancelled', 'deadline_exceeded', '', '')
  elseif rec[9] ~= '' and not rec[11] and rec[8] + rec[9] <= now then
    redis.call('ZREM', base .. 'timers', id)
    end_run(id, rec[4], rec[14], rec[12], 'queued', 'shed', 'max_wait', '', '')
  elseif not version or (rec[10] and rec[10] ~= version) then
    local need = need_of(rec[2], rec[10])
    redis.call('ZADD', base .. 'unserved', popped[i + 1], id)
    redis.call('ZADD', base .. 'aside:' .. need, popped[i + 1], id)
    redis.call('SADD', base .. 'needs', need)
    redis.call('HSET', run, 'reason', 'no host serves ' .. rec[2] .. '@' .. (rec[10] or '(any version)'))
  else
    local fence = rec[15] + 1
    redis.call('SADD', base .. 'owned:' .. host, id)
    if bounded then redis.call('ZREM', base .. 'timers', id) end
    local journal, losses = {}, 0
    -- A fork has a past before its first start.
    if rec[11] or rec[19] then journal = redis.call('LRANGE', base .. 'journal:' .. id, 0, -1) end
    if rec[11] then
      go(id, rec[4], rec[14], 'queued', 'running', 'fence', fence, 'host', host, 'reason', '')
      if rec[17] and tonumber(rec[18]) == #journal then losses = tonumber(rec[17]) end
    else
      go(id, rec[4], rec[14], 'queued', 'running', 'fence', fence, 'host', host, 'reason', '', 'pinned', version,
        'started_ms', now)
    end
    claims[#claims + 1] = {id, fence, rec[2], rec[3], rec[4], rec[5], rec[6] or 0, rec[7], rec[8], rec[12] or '',
      rec[13] or '', journal, losses, rec[20] and 1 or 0}
  end
end
claims[1] = redis.call('ZCARD', KEYS[1])
settle()
return claims
