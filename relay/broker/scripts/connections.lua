#!lua flags=allow-oom
-- Say how many sockets a user has on one process.
--
-- KEYS: the user's counts
-- ARGV: process, its count, life of the counts (ms)
-- Returns {process, count, process, count, …}

if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return redis.call('HGETALL', KEYS[1])
