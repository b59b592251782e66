#!lua flags=allow-oom
-- Say when seats are due.
--
-- KEYS: the order of seats
-- ARGV: in how many ms ('' = never again), then for each seat: its name, and the mark it still has
--       to have ('' = any)

local order, after = KEYS[1], ARGV[1]
local at = after ~= '' and whole(now_ms() + tonumber(after))
for index = 2, #ARGV, 2 do
  local seat, mark = ARGV[index], ARGV[index + 1]
  if mark == '' or redis.call('ZSCORE', order, seat) == mark then
    if at then
      redis.call('ZADD', order, at, seat)
    else
      redis.call('ZREM', order, seat)
    end
  end
end
return 1
