#!lua flags=allow-oom
-- Where calls stand; asking keeps a call's position and rosters from expiring.
--
-- KEYS: meta, history and roster of each call
-- ARGV: fresh (see publish.lua), life of an idle call in ms
-- Returns {epoch, offset, epoch, offset, …}

local replid = replication_id()
local positions = {}
for index = 1, #KEYS, 3 do
  local meta, history, roster = KEYS[index], KEYS[index + 1], KEYS[index + 2]
  local at = place(meta, ARGV[1], replid)
  adopt(meta, history, at, replid)
  redis.call('PEXPIRE', meta, ARGV[2])
  redis.call('PEXPIRE', roster, ARGV[2])
  positions[#positions + 1] = at.epoch
  positions[#positions + 1] = at.offset
end
return positions
