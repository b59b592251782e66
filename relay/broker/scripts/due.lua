#!lua flags=no-writes
-- Which seats are due, or, when there are none, will be within a time.
--
-- KEYS: the order of seats
-- ARGV: at most how many; the time, if any: from and to, in ms from now
-- Returns {seat, mark, seat, mark, …}

local order, now = KEYS[1], now_ms()
local function between(first, last)
  return redis.call(
    'ZRANGEBYSCORE', order, first, last, 'WITHSCORES', 'LIMIT', 0, ARGV[1]
  )
end

local found = between('-inf', whole(now))
if #found == 0 and ARGV[2] then
  local first, last = tonumber(ARGV[2]), tonumber(ARGV[3])
  found = between('(' .. whole(now + first), '(' .. whole(now + last))
end
return found
