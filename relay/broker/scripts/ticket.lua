#!lua flags=allow-oom
-- Keep or forget a ticket of a user.
--
-- KEYS: the user's tickets
-- ARGV: socket, ticket ('' = forget it), how long it can be claimed ('' = it is held), life of the
--       tickets of a user of whom nobody says anything (ms)
-- Returns how many there are

if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  local till = ARGV[3] == '' and '0' or whole(now_ms() + tonumber(ARGV[3]))
  redis.call('HSET', KEYS[1], ARGV[1], till .. ' ' .. ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return redis.call('HLEN', KEYS[1])
