-- finish: runs reach an end, or confirmation_unknown.
-- ARGV: retention; then per run: id, fence, host, state, reason, output, error, the journal's last link as the owner
--   believes it ('' for none), the seal of the end.
-- Returns a flat list of exceptions: id, 'STALE'.
-- A run that ends as anything but succeeded takes its children with it.
-- Invariant: only the owner ends a running run, and a call that is sent again changes nothing.
local exceptions = {}
for i = 2, #ARGV, 9 do
  local id, state = ARGV[i], ARGV[i + 3]
  local anchor = {'head', ARGV[i + 7], 'end_seal', ARGV[i + 8]}
  local rec = redis.call('HMGET', base .. 'run:' .. id, 'fence', 'state', 'batch', 'version', 'parent')
  if rec[1] == ARGV[i + 1] and rec[2] == 'running' then
    redis.call('SREM', base .. 'owned:' .. ARGV[i + 2], id)
    if TERMINAL[state] then
      end_run(id, rec[3], rec[4], rec[5], 'running', state, ARGV[i + 4], ARGV[i + 5], ARGV[i + 6], anchor)
    else
      let_go(id)
      go(id, rec[3], rec[4], 'running', state, 'reason', ARGV[i + 4], 'error', ARGV[i + 6], unpack(anchor))
      redis.call('ZADD', base .. 'unknown', now, id)
    end
  elseif rec[1] ~= ARGV[i + 1] or rec[2] ~= state then
    exceptions[#exceptions + 1] = id
    exceptions[#exceptions + 1] = 'STALE'
  end
end
settle()
return exceptions
