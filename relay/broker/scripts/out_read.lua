#!lua flags=no-writes
-- A page of the outbox's entries after a number; it ends with the entry that reaches a bound.
--
-- KEYS: entries
-- ARGV: after, count, bytes

local after, count, bytes, page, size = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), {}, 0
repeat
  local some = math.min(16, count - #page)
  local entries = redis.call('XRANGE', KEYS[1], '(' .. after .. '-0', '+', 'COUNT', some)
  for _, entry in ipairs(entries) do
    page[#page + 1] = entry
    after = string.match(entry[1], '^%d+')
    size = size + #entry[2][#entry[2]]
    if size >= bytes then
      return page
    end
  end
until #entries < some or #page >= count
return page
