-- resolve: somebody has said what became of an effect that nobody could prove, or wants its host to look once more.
-- ARGV: retention; id; the state version and the length of the journal that the caller has looked at; the entry with
--   what was said ('' to look once more); a token of this very word; reason.
-- Returns one word:
--   'OK'       the run is queued, with the entry (also when this call was made before)
--   'missing'  there is no such run
--   'state'    it is not confirmation_unknown
--   'moved'    it was, but not since the version that the caller has looked at: somebody else's word came first
--   'journal'  its journal has another length: the entry would be about something else
-- Invariant: of all words about one state version at most one is taken, once. A run that is resolved is torn, as one
--   whose host was lost: the effect's record is not settled before its next owner has read the journal. So no script
--   ends it meanwhile, for its deadline or because it was cancelled, but its next host does, which settles that first.
--   A person's word gives it a fresh start also where hosts died under it.
local id, run, journal = ARGV[2], base .. 'run:' .. ARGV[2], base .. 'journal:' .. ARGV[2]
local rec = redis.call('HMGET', run, 'state', 'version', 'batch', 'order', 'resolved')
if not rec[1] then return 'missing' end
if rec[5] == ARGV[6] then return 'OK' end
if rec[1] ~= 'confirmation_unknown' then return 'state' end
if rec[2] ~= ARGV[3] then return 'moved' end
if redis.call('LLEN', journal) ~= tonumber(ARGV[4]) then return 'journal' end
if ARGV[5] ~= '' then redis.call('RPUSH', journal, ARGV[5]) end
redis.call('ZREM', base .. 'unknown', id)
redis.call('HDEL', run, 'losses', 'mark')
go(id, rec[3], rec[2], 'confirmation_unknown', 'queued', 'reason', ARGV[7], 'error', '', 'torn', 1, 'resolved', ARGV[6])
enqueue(id, rec[4])
if rec[3] ~= '' then
  -- A batch that was over, and may have been about to be forgotten, goes on.
  redis.call('PERSIST', base .. 'batch:' .. rec[3])
  redis.call('PERSIST', base .. 'batch:' .. rec[3] .. ':runs')
end
settle()
return 'OK'
