#!lua flags=allow-oom
-- Say that a process is alive, and forget those that are not.
--
-- KEYS: nodes
-- ARGV: process, silence after which one is dead (ms)
-- Returns 1 when the process was not known as alive, else 0

local now = now_ms()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(now - tonumber(ARGV[2])))
return redis.call('ZADD', KEYS[1], whole(now), ARGV[1])
