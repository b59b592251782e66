#!lua flags=no-writes
-- Waiting deliveries whose time has come, and when the next one's will have.
--
-- KEYS: waiting, waiting_at
-- ARGV: now (ms), count, how many to skip
-- Returns {texts, time of the next one ('' = none)}

local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', ARGV[3], ARGV[2])
local next = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local texts = #ids > 0 and redis.call('HMGET', KEYS[1], unpack(ids)) or {}
return {texts, next[2] or ''}
