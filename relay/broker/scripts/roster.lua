#!lua flags=allow-oom
-- Say who watches a call on one process, and tell the processes that watch it too.
--
-- KEYS: channel, roster
-- ARGV: process, its roster ('' = nobody), life of an idle call in ms

if ARGV[2] == '' then
  redis.call('HDEL', KEYS[2], ARGV[1])
else
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
redis.call('SPUBLISH', KEYS[1], header(ROSTER, '--------', 0) .. ARGV[1])
return 1
