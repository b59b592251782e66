#!lua flags=allow-oom
-- Tell all processes something, and keep it for those that are not listening just now.
--
-- KEYS: notices
-- ARGV: channel, notice, how many are kept, for how long (ms)

local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'notice', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PUBLISH', ARGV[1], '{"type":"notice","id":"' .. id .. '"}\n' .. ARGV[2])
return id
