#!lua flags=allow-oom
-- End the session of a call that is still the one the caller means.
--
-- KEYS: session
-- ARGV: the session

if redis.call('HGET', KEYS[1], 'session') == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
