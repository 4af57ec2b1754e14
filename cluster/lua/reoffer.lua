-- reoffer: runs that no host served so far go back to the queue, because a host with other agents has come.
-- ARGV: retention; how many at most.
-- Returns how many moved.
-- Invariant: a run's place in the order does not change.
local ids = redis.call('ZPOPMIN', base .. 'unserved', tonumber(ARGV[2]))
for i = 1, #ids, 2 do
  if redis.call('HGET', base .. 'run:' .. ids[i], 'state') == 'queued' then enqueue(ids[i], ids[i + 1]) end
end
settle()
return #ids / 2
