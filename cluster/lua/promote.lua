-- promote: a branch, with its child runs, gets the right to effects; all others of its lineage, and what is below
--   them, lose it. One step: there is no moment at which two of them have it.
-- ARGV: retention; run; who; why.
-- Returns {word, …}:
--   'promoted', runs …   it has the right now; these branches had it
--   'owner'              nothing had to change
--   'missing'            there is no such run
--   'ended', state       what has ended causes no more effects
--   'child', parent      a child run that was never forked goes with its parent
--   'alone'              it has no other branch, and has the right
--   'busy', run, step    that run has the right and an open intent there: its outcome must be known first
--   'unknown', run       that run's effect is unproven: it must be resolved first
--   'undone', run, step  that run has undone an effect that this one takes for applied
-- Invariant: of all runs with one lineage at most one has no 'readonly', child runs that are made later included
--   (submit.lua asks holders:ROOT, by lineage). An intent is open in no run that has lost the right.
local id, by, why = ARGV[2], ARGV[3], ARGV[4]
local known = {}
local function facts(each)
  local found = known[each]
  if found == nil then
    local rec = redis.call('HMGET', base .. 'run:' .. each, 'state', 'lineage', 'parent', 'custom_id', 'readonly')
    -- A child run's custom_id is its lineage.
    found = rec[1] and {state = rec[1], lineage = rec[2] or (rec[3] and rec[4]) or each, parent = rec[3],
      readonly = rec[5]}
    known[each] = found
  end
  return found
end

-- Marks a run and all child runs below it.
local function mark(top, marks)
  local left = {top}
  while #left > 0 do
    local each = table.remove(left)
    if not marks[each] then
      marks[each] = true
      for _, child in ipairs(redis.call('SMEMBERS', base .. 'children:' .. each)) do left[#left + 1] = child end
    end
  end
end

-- Bytes of a MessagePack value's length, or of itself: the server's own cmsgpack reads no binary values.
local LENGTHS = {[0xc4] = 1, [0xc5] = 2, [0xc6] = 4, [0xd9] = 1, [0xda] = 2, [0xdb] = 4}
local NUMBERS = {[0xcc] = 1, [0xcd] = 2, [0xce] = 4, [0xcf] = 8, [0xd0] = 1, [0xd1] = 2, [0xd2] = 4, [0xd3] = 8}

-- The value at a place, where it is a text, and the place after it; nil for what no journal entry has.
local function read(raw, at)
  local first = string.byte(raw, at)
  if not first then return nil end
  if first < 0x80 or first >= 0xe0 then return '', at + 1 end
  if NUMBERS[first] then return '', at + 1 + NUMBERS[first] end
  local length, start = first - 0xa0, at + 1
  if LENGTHS[first] then
    length = 0
    for place = at + 1, at + LENGTHS[first] do length = length * 256 + string.byte(raw, place) end
    start = at + 1 + LENGTHS[first]
  elseif first < 0xa0 or first > 0xbf then
    return nil
  end
  return string.sub(raw, start, start + length - 1), start + length
end

-- What a run's entries say: kind, step, status and facts of each (actors/journal.py).
local function entries(each, list)
  local found = {}
  for _, raw in ipairs(redis.call('LRANGE', base .. list .. each, 0, -1)) do
    local values, at = {}, 2
    for field = 1, math.min(string.byte(raw) - 0x90, 11) do
      local value, after = read(raw, at)
      if not after then break end
      values[field], at = value, after
    end
    if values[6] then
      found[#found + 1] = {kind = values[2], step = values[3], status = values[6], facts = values[11] or ''}
    end
  end
  return found
end

-- The step of an intent that nothing has followed yet.
local function open_intent(each)
  local last = {}
  for _, entry in ipairs(entries(each, 'journal:')) do last[entry.step] = entry.kind end
  for step, kind in pairs(last) do
    if kind == 'intent' then return step end
  end
end

-- Steps whose effect a run has undone.
local function undone_by(each)
  local undoing, undone = {}, {}
  for _, entry in ipairs(entries(each, 'journal:')) do
    if entry.kind == 'intent' and string.find(entry.facts, '"undoes":"', 1, true) then
      undoing[entry.step] = cjson.decode(entry.facts).undoes
    elseif entry.kind == 'call' and entry.status == 'ok' and undoing[entry.step] then
      undone[#undone + 1] = undoing[entry.step]
    end
  end
  return undone
end

-- Steps of a run's past that caused an effect.
local function effects_of(each)
  local intended, caused = {}, {}
  for _, list in ipairs({'archive:', 'journal:'}) do
    for _, entry in ipairs(entries(each, list)) do
      if entry.kind == 'intent' then intended[entry.step] = true end
      if entry.kind == 'call' and entry.status == 'ok' and intended[entry.step] then caused[entry.step] = true end
    end
  end
  return caused
end

local branch = facts(id)
if not branch then return {'missing'} end
if TERMINAL[branch.state] then return {'ended', branch.state} end
local line = branch.lineage
local root = string.match(line, '^[^/]+')
local function covered(lineage) return lineage == line or string.sub(lineage, 1, #line + 1) == line .. '/' end
if redis.call('SISMEMBER', base .. 'branches:' .. root, id) == 0 then
  return branch.parent and {'child', branch.parent} or {'alone'}
end

local mine, all = {}, {}
mark(id, mine)
for _, each in ipairs(redis.call('SMEMBERS', base .. 'branches:' .. root)) do mark(each, all) end
local losers, caused = {}, nil
for each in pairs(all) do
  local other = not mine[each] and facts(each)
  if other and covered(other.lineage) then
    if not other.readonly then
      losers[#losers + 1] = each
      if other.state == 'confirmation_unknown' then return {'unknown', each} end
      local step = not TERMINAL[other.state] and open_intent(each)
      if step then return {'busy', each, step} end
    end
    if other.lineage == line then
      for _, step in ipairs(undone_by(each)) do
        caused = caused or effects_of(id)
        if caused[step] then return {'undone', each, step} end
      end
    end
  end
end
local gainers = {}
for each in pairs(mine) do
  if facts(each) and facts(each).readonly then gainers[#gainers + 1] = each end
end
if #gainers == 0 and #losers == 0 then return {'owner'} end

local answer, from = {'promoted'}, {}
for _, each in ipairs(losers) do
  redis.call('HSET', base .. 'run:' .. each, 'readonly', 1)
  if facts(each).lineage == line then
    from[#from + 1] = each
    answer[#answer + 1] = each
  end
end
local note = {at_ms = now, run = id, lineage = line, by = by, why = why}
if #from > 0 then note['from'] = from end
note = cjson.encode(note)
for _, each in ipairs(from) do redis.call('HSET', base .. 'run:' .. each, 'demoted', note) end
redis.call('HSET', base .. 'run:' .. id, 'promoted', note)
redis.call('RPUSH', base .. 'promotions:' .. root, note)
redis.call('LTRIM', base .. 'promotions:' .. root, -1000, -1)
local holders = base .. 'holders:' .. root
for _, lineage in ipairs(redis.call('HKEYS', holders)) do
  if covered(lineage) then redis.call('HDEL', holders, lineage) end
end
redis.call('HSET', holders, line, id)
for _, each in ipairs(gainers) do
  redis.call('HDEL', base .. 'run:' .. each, 'readonly')
  poke(each, 'promoted')
end
settle()
return answer
