#!lua
-- Replace a value that is still what the caller read.
--
-- KEYS: the value's key
-- ARGV: what the caller read ('' = nothing), what to write ('' = delete it), for how long (s; '0' or
--       nothing = for ever)
-- Returns what stands there now

local present = redis.call('GET', KEYS[1]) or ''
if present ~= ARGV[1] then
  return present
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
elseif (ARGV[3] or '0') == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
return ARGV[2]
