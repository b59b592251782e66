#!lua flags=allow-oom
-- Record what was done and tried in a partition, all of it or, without the lease, nothing. A server
-- that was promoted has the lease too, and may have forgotten entries and given their numbers anew:
-- the token names the server that it is good for.
--
-- KEYS: lease, entries, state, tried, dead, dead_at, waiting, waiting_at
-- ARGV: token, the number up to which entries are done for every hook ('0' = as before), bound of
--       the dead letters in bytes, then four lists, each after its length: fields and values to
--       set in tried; fields to remove from it; id, time and text of dead letters; member ('id|hook'),
--       time and text of waiting deliveries; members of waiting ones that are over
-- Returns how many old dead letters were dropped, -1 when another one has the lease

local lease, entries, state, tried, dead, dead_at, waiting, waiting_at = unpack(KEYS)
local server = string.sub(replication_id(), 1, 8)
if redis.call('GET', lease) ~= ARGV[1] or string.match(ARGV[1], '[^-]*$') ~= server then
  return -1
end
local bound = tonumber(ARGV[3])
local at = 3

local function take()
  at = at + 1
  return ARGV[at]
end

if ARGV[2] ~= '0' then
  redis.call('XTRIM', entries, 'MINID', whole(tonumber(ARGV[2]) + 1) .. '-0')
end
for _ = 1, tonumber(take()) do
  local field = take()
  redis.call('HSET', tried, field, take())
end
for _ = 1, tonumber(take()) do
  redis.call('HDEL', tried, take())
end
local dropped = 0
for _ = 1, tonumber(take()) do
  local id, time = take(), take()
  dropped = dropped + bury(state, dead, dead_at, id, time, take(), bound)
end
for _ = 1, tonumber(take()) do
  local member, due = take(), take()
  wait_until(state, waiting, waiting_at, member, due, take())
end
for _ = 1, tonumber(take()) do
  wait_no_more(state, waiting, waiting_at, take())
end
return dropped
