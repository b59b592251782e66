#!lua flags=allow-oom
-- Take the lease of a partition, renew it, or give it back.
--
-- KEYS: lease, state, entries, waiting_at
-- ARGV: who, for how long (ms; '0' = give it back), the token held until now ('' = none)
-- Returns {token, version of the hooks, top, shed, length, waiting, their bytes}; the token is ''
-- while another one has it. A server that was promoted or restarted may have forgotten writes: then
-- the token is a new one.

local lease, state = KEYS[1], KEYS[2]
local holder = redis.call('GET', lease)
if ARGV[2] == '0' then
  if holder == ARGV[3] then
    redis.call('DEL', lease)
  end
  return {'', '0', '0', '0', 0, 0, '0'}
end
local server = string.sub(replication_id(), 1, 8)
local is_mine = holder and string.match(holder, '^[^-]*') == ARGV[1]
if holder and not is_mine then
  return {'', '0', '0', '0', 0, 0, '0'}
end
local token = ARGV[3]
if not is_mine or holder ~= token or string.match(token, '[^-]*$') ~= server then
  token = ARGV[1] .. '-' .. whole(redis.call('HINCRBY', state, 'fence', 1)) .. '-' .. server
end
redis.call('SET', lease, token, 'PX', ARGV[2])
local waiting = redis.call('ZCARD', KEYS[4])
if waiting == 0 then
  redis.call('HDEL', state, 'waiting')  -- a mistake in the count, if there was one, ends here
end
local known = redis.call('HMGET', state, 'version', 'top', 'shed', 'waiting')
return {token, known[1] or '0', known[2] or '0', known[3] or '0', redis.call('XLEN', KEYS[3]),
  waiting, known[4] or '0'}
