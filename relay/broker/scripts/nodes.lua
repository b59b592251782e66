#!lua flags=no-writes
-- Which processes are alive.
--
-- KEYS: nodes
-- ARGV: silence after which one is dead (ms)

return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. whole(now_ms() - tonumber(ARGV[1])), '+inf')
