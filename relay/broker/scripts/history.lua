#!lua flags=allow-oom
-- A page of what was kept after an offset.
--
-- KEYS: meta, history
-- ARGV: after, fresh (see publish.lua), life of an idle call and history's age (ms), the page's
--       bounds: bytes and count
-- Returns {top offset, epochs, {id, body, id, body, …}}

local meta, history = KEYS[1], KEYS[2]
local life, bytes, count = ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])

local replid = replication_id()
local at = place(meta, ARGV[2], replid)
adopt(meta, history, at, replid)
redis.call('PEXPIRE', meta, life)

local too_old = now_ms() - tonumber(ARGV[4])
local after, size, page = tonumber(ARGV[1]), 0, {}
repeat
  local entries = redis.call('XRANGE', history, whole(after + 1), '+', 'COUNT', 16)
  for _, entry in ipairs(entries) do
    local id, body = entry[1], entry[2][2]
    after = tonumber(string.match(id, '^%d+'))
    -- Only from the head: a clock that was set back must not make a hole.
    if #page > 0 or published_ms(id) >= too_old then
      page[#page + 1] = id
      page[#page + 1] = body
      size = size + #body
    end
    if size >= bytes or #page >= 2 * count then
      break
    end
  end
until #entries == 0 or size >= bytes or #page >= 2 * count
return {at.offset, at.epochs, page}
