#!lua
-- Count one more use in a window that ends by itself.
--
-- KEYS: the window's count
-- ARGV: for how long it is kept (s)
-- Returns how many there were

local count = redis.call('INCR', KEYS[1])
if count == 1 then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return count
