-- append: the group commit. Journal entries of many runs, each checked against its run's fence.
-- ARGV: retention; then per run: id, fence, entries already there as its owner believes, finished steps among the new
--   ones, intents among them, how many new ones, the entries.
-- Returns a flat list of exceptions: id, reason. 'STALE': another owner, nothing was written; 'READONLY': an intent of a
--   branch that may cause no effects, nothing was written; 'GAP': the journal is shorter than its owner believes (the
--   store lost what it had acknowledged), nothing was written; 'CANCEL': written, and somebody asked for the run to be
--   cancelled.
-- Invariant: entries of one fence are appended once and in order, however often the call is sent again; an entry of a
--   late owner is never appended, nor an intent of a branch without the right to effects.
local exceptions = {}
local i = 2
while i <= #ARGV do
  local id, fence, wanted, finished = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local intents, new = ARGV[i + 4], tonumber(ARGV[i + 5])
  local first = i + 6
  i = first + new
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'fence', 'state', 'batch', 'cancel', 'readonly')
  if rec[1] ~= fence or rec[2] ~= 'running' then
    exceptions[#exceptions + 1] = id
    exceptions[#exceptions + 1] = 'STALE'
  elseif rec[5] and intents ~= '0' then
    exceptions[#exceptions + 1] = id
    exceptions[#exceptions + 1] = 'READONLY'
  else
    local journal = base .. 'journal:' .. id
    -- Appended in the belief that just those entries are there that the owner knows of, and taken back where that is
    -- wrong: it is right but for calls that are sent again. In parts: Lua's unpack has a limit of some 8,000 values.
    local length = new == 0 and redis.call('LLEN', journal)
    for part = first, i - 1, 4000 do
      length = redis.call('RPUSH', journal, unpack(ARGV, part, math.min(part + 3999, i - 1)))
    end
    length = length - new
    if length ~= wanted then
      redis.call('RPOP', journal, new)
    else
      -- From now on it is for a host to end this run: its effects may have to be undone.
      if intents ~= '0' then redis.call('HSET', base .. 'run:' .. id, 'owes', 1) end
      if finished > 0 then
        count(base .. 'counts', 'steps', finished)
        if rec[3] ~= '' then count(base .. 'batch:' .. rec[3], 'steps', finished) end
      end
    end
    if length < wanted then
      exceptions[#exceptions + 1] = id
      exceptions[#exceptions + 1] = 'GAP'
    elseif rec[4] then
      exceptions[#exceptions + 1] = id
      exceptions[#exceptions + 1] = 'CANCEL'
    end
  end
end
settle()
return exceptions
