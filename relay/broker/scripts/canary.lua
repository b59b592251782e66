#!lua
-- Send a canary. It writes, as an event does: so Redis refuses it whenever it would refuse an event
-- (no memory, too few replicas, read-only); a bare SPUBLISH it would let pass.
--
-- KEYS: channel, the canary's key
-- ARGV: message

redis.call('SET', KEYS[2], '1', 'EX', 10)
redis.call('SPUBLISH', KEYS[1], ARGV[1])
