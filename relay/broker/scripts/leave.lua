#!lua flags=allow-oom
-- Make a participant leave the session of a call; the last one ends it.
--
-- KEYS: session, departures
-- ARGV: the user's field, what stood there, the user, the departure
-- Returns the departure behind '1' for the last one, else '0'; nil when the seat has changed

local session, departures = KEYS[1], KEYS[2]
if redis.call('HGET', session, ARGV[1]) ~= ARGV[2]
  or redis.call('HEXISTS', departures, ARGV[3]) == 1 then
  return false
end
redis.call('HDEL', session, ARGV[1])
local last = redis.call('HLEN', session) == 1  -- only the session itself
if last then
  redis.call('DEL', session)
end
local departure = (last and '1' or '0') .. ARGV[4]
redis.call('HSET', departures, ARGV[3], departure)
return departure
