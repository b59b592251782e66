#!lua
-- Replace a value that is still what the caller read.
--
-- KEYS: the value's key
-- ARGV: what the caller read ('' = nothing), what to write
-- Returns what stands there now

local present = redis.call('GET', KEYS[1]) or ''
if present ~= ARGV[1] then
  return present
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
