#!lua flags=allow-oom
-- Change tickets of a user that are still what the caller read.
--
-- KEYS: the user's tickets
-- ARGV: life of the tickets of a user of whom nobody says anything (ms), then for each ticket: its
--       socket, what the caller read ('' = nothing), what to write ('' = forget it)
-- Returns 1, or 0 with nothing changed when one is another now

for index = 2, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[index]) or '') ~= ARGV[index + 1] then
    return 0
  end
end
for index = 2, #ARGV, 3 do
  put(KEYS[1], ARGV[index], ARGV[index + 2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
