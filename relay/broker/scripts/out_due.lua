#!lua flags=no-writes
-- Which waiting deliveries are due, and when the next one will be.
--
-- KEYS: waiting_at
-- ARGV: now (ms), count, how many to skip
-- Returns {members, time of the next one ('' = none)}

local at = KEYS[1]
local due = redis.call('ZRANGEBYSCORE', at, '-inf', ARGV[1], 'LIMIT', ARGV[3], ARGV[2])
local next = redis.call('ZRANGEBYSCORE', at, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {due, next[2] or ''}
