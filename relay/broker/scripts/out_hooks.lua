#!lua flags=allow-oom
-- Tell the publish steps of a partition what the hooks want, unless they know it from a later
-- version; the leaseholder hears of it.
--
-- KEYS: state, wake
-- ARGV: version, what is wanted (HookList.wanted)

local known = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
if known >= tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'wanted', ARGV[2])
redis.call('SPUBLISH', KEYS[2], header(VOLATILE, '--------', 0))
return 1
