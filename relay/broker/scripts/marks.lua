#!lua flags=allow-oom
-- Say how far the sockets of a process have come.
--
-- KEYS: the process's marks
-- ARGV: life of the marks (ms), then for each call: cid, position ('' = nobody watches it)
-- Returns 1

redis.call('HSET', KEYS[1], '', '')  -- there are marks, be it of no call
for index = 2, #ARGV, 2 do
  put(KEYS[1], ARGV[index], ARGV[index + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
