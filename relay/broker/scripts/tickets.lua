#!lua flags=no-writes
-- The tickets of a user, and what time it is by the clock that they were written by.
--
-- KEYS: the user's tickets
-- Returns {now (ms), {socket, ticket, socket, ticket, …}}

return {whole(now_ms()), redis.call('HGETALL', KEYS[1])}
