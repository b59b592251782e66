#!lua
-- Take a seat in the session of a call.
--
-- KEYS: session
-- ARGV: the user's field, the participant, the session that begins if there is none
-- Returns {session, 'joins:participant'} as they stand now

local session = redis.call('HGET', KEYS[1], 'session')
if not session then
  session = ARGV[3]
  redis.call('HSET', KEYS[1], 'session', session)
end
local taken = redis.call('HGET', KEYS[1], ARGV[1])
local joins, participant = string.match(taken or '', '^(%d+):(.*)$')
-- Joining again changes the count, so that a look at the seat that is under way notices.
taken = whole((joins or 0) + 1) .. ':' .. (participant or ARGV[2])
redis.call('HSET', KEYS[1], ARGV[1], taken)
return {session, taken}
