#!lua flags=allow-oom
-- Put a dead letter back: it waits to be delivered, and is due at once.
--
-- KEYS: dead, dead_at, state, waiting, waiting_at, wake
-- ARGV: id, now (ms), the text of the waiting delivery, its member ('id|hook')
-- Returns 1; 0 when the dead letter is gone

local dead, dead_at, state, waiting, waiting_at, wake = unpack(KEYS)
local size = redis.call('HSTRLEN', dead, ARGV[1])
if size == 0 then
  return 0
end
redis.call('HDEL', dead, ARGV[1])
redis.call('ZREM', dead_at, ARGV[1])
redis.call('HINCRBY', state, 'dead', -size)
wait_until(state, waiting, waiting_at, ARGV[4], ARGV[2], ARGV[3])
redis.call('SPUBLISH', wake, header(VOLATILE, '--------', 0))
return 1
