-- fork: makes a run that goes on from another one's past; the same fork twice is made once.
-- ARGV: retention; source; id; agent; version ('': any); custom_id; level; digest of what was asked; job;
--   lineage; tenant; '1' where it may cause no effects before it is promoted; how many entries its archive has; these entries;
--   then those of its journal.
-- Returns 1 made, 0 the same fork was there already, -1 another one holds the id, 'MISSING' there is no such source.
-- Invariant: the source is not touched, and what was recorded of it before the fork cannot change: its journal only
--   grows, and a checkpoint moves it to the archive. A fork is nobody's child. The family of a root (the run that
--   stands before the first '/' of a lineage) is in branches:ROOT with all of its forks, wherever they part.
local source, id, lineage = ARGV[2], ARGV[3], ARGV[10]
local run = base .. 'run:' .. id
if redis.call('EXISTS', base .. 'run:' .. source) == 0 then return 'MISSING' end
local digest = redis.call('HGET', run, 'digest')
if digest then return digest == ARGV[8] and 0 or -1 end
local archived = tonumber(ARGV[13])
local inherited = #ARGV - 13 - archived
local order = charge(tonumber(ARGV[7]), ARGV[11], DEFAULT_COST_MS, 1)
redis.call('HSET', run, 'state', 'queued', 'version', 2, 'since', now, 'fence', 0, 'agent', ARGV[4], 'batch', '',
  'custom_id', ARGV[6], 'digest', ARGV[8], 'job', ARGV[9], 'order', order, 'accepted_ms', now, 'deadline', '',
  'max_wait', '', 'reason', 'queue', 'lineage', lineage, 'inherited', inherited, 'tenant', ARGV[11], 'cost',
  DEFAULT_COST_MS, 'weight', 1, 'size', #ARGV[9])
if ARGV[5] ~= '' then redis.call('HSET', run, 'pinned', ARGV[5]) end
if ARGV[12] ~= '' then redis.call('HSET', run, 'readonly', 1) end
-- In parts: Lua's unpack has a limit of some 8,000 values.
local function keep(list, first, last)
  for part = first, last, 4000 do
    redis.call('RPUSH', base .. list .. id, unpack(ARGV, part, math.min(part + 3999, last)))
  end
end
keep('archive:', 14, 13 + archived)
keep('journal:', 14 + archived, #ARGV)
local root = string.match(lineage, '^[^/]+')
redis.call('SADD', base .. 'branches:' .. root, root, source, id)
redis.call('ZADD', base .. 'lineages', 'NX', now + LINEAGE_LOOK_MS, root)
count_state('', nil, 'queued')
enqueue(id, order)
settle()
return 1
