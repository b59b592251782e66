#!lua
-- The atomic publish step. What can refuse comes first, SPUBLISH last: what was shown is committed.
--
-- KEYS: channel, meta, history, roster, the outbox's entries, state, wake channel and dead letters
--       (two keys), then the seen id and the alias where there are any
-- ARGV: fresh, body (a kept one without its last brace), kept ('1' or '0'), fingerprint,
--       window of the ids, history's count and age, life of an idle call (times in ms), the event's
--       cid, type and id, bounds of the outbox and of the dead letters in bytes
-- fresh is a random name: of the epoch, should one begin, and of this publish, so that the relay
-- can tell its own second try from a repeat.
-- Returns {1 duplicate + 2 reused, epoch, offset}; '' and 0 for a volatile event.

local channel, meta, history, roster, outbox, state, wake, dead, dead_at, seen, alias = unpack(KEYS)
local fresh, body, kept, fingerprint = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local window, count, age, life = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local cid, kind, event_id = ARGV[9], ARGV[10], ARGV[11]

local reused = 0
local known_alias = alias and redis.call('GET', alias)
if known_alias and known_alias ~= fingerprint then
  reused = 2
end
local first = seen and redis.call('GET', seen)
if first then
  local epoch, offset, publish, said = string.match(first, '^([^:]*):(%d*):([^:]*):(.*)$')
  if said ~= fingerprint then
    reused = 2
  end
  local duplicate = publish == fresh and 0 or 1
  return {duplicate + reused, epoch, tonumber(offset) or 0}
end

local function mark(epoch, offset)
  if seen then
    local record = table.concat({epoch, offset, fresh, fingerprint}, ':')
    redis.call('SET', seen, record, 'PX', window)
  end
  if alias then
    redis.call('SET', alias, fingerprint, 'NX', 'PX', window)
  end
end

if not kept then
  mark('', '')
  redis.call('SPUBLISH', channel, header(VOLATILE, '--------', 0) .. body)
  return {reused, '', 0}
end

-- Entries that are too old go a block at a time; readers pass over the few that linger. Offsets
-- have no holes, so the length says where the history begins.
local function trim(top, before)
  local edge = top - redis.call('XLEN', history) + 32
  for _ = 1, 4 do
    local entry = edge < top and redis.call('XRANGE', history, whole(edge), whole(edge))[1]
    if not entry or published_ms(entry[1]) >= before then
      return
    end
    redis.call('XTRIM', history, 'MINID', whole(edge + 1))
    edge = edge + 32
  end
end

-- The oldest entries become dead letters without body when the outbox holds more than it may. Each
-- entry says how many bytes were appended up to it, so the size is a subtraction. A few are not
-- worth looking at.
local function shed(total, now)
  while redis.call('XLEN', outbox) > 8 do
    local entry = redis.call('XRANGE', outbox, '-', '+', 'COUNT', 1)[1]
    local _, _, _, upto, _, of, _, type, _, event, _, epoch, _, place, _, text = unpack(entry[2])
    if total - tonumber(upto) + #text <= tonumber(ARGV[12]) then
      return
    end
    redis.call('XDEL', outbox, entry[1])
    redis.call('HINCRBY', state, 'shed', 1)
    local id = of .. '/' .. epoch .. '/' .. place
    local letter = cjson.encode({
      id = id, at_ms = now, reason = 'outbox_bound', hook_id = '', cid = of, type = type,
      event_id = event, epoch = epoch, offset = tonumber(place),
    })
    bury(state, dead, dead_at, id, whole(now), letter, tonumber(ARGV[13]))
  end
end

-- What the hooks want stands here, not with the caller: so it is right at this very moment.
local function owe(epoch, offset, placed, now)
  local known = redis.call('HMGET', state, 'wanted', 'version')
  local wanted = known[1]
  if not wanted or wanted == '' then
    return
  end
  if wanted ~= '*' and not string.find(wanted, ',' .. kind .. ',', 1, true) then
    return
  end
  local number = redis.call('HINCRBY', state, 'top', 1)
  local total = redis.call('HINCRBY', state, 'bytes', #placed + 200)
  redis.call('XADD', outbox, whole(number) .. '-0', 'version', known[2], 'bytes', whole(total),
    'cid', cid, 'type', kind, 'event_id', event_id, 'epoch', epoch, 'offset', offset,
    'body', placed)
  shed(total, now)
  redis.call('SPUBLISH', wake, header(VOLATILE, '--------', 0))
end

local replid = replication_id()
local now = now_ms()
local at = place(meta, fresh, replid)
local top = at.offset + 1
local offset = whole(top)
local placed = body .. ',"epoch":"' .. at.epoch .. '","offset":' .. offset .. '}'

adopt(meta, history, at, replid)
redis.call('XADD', history, 'MAXLEN', count, offset .. '-' .. whole(now), 'body', placed)
redis.call('PEXPIRE', history, whole(age))
redis.call('HSET', meta, 'offset', offset)
redis.call('PEXPIRE', meta, life)
mark(at.epoch, offset)
if top % 16 == 0 then
  trim(top, now - age)
  redis.call('PEXPIRE', roster, life)
end
owe(at.epoch, offset, placed, now)
redis.call('SPUBLISH', channel, header(KEPT, at.epoch, top) .. placed)
return {reused, at.epoch, top}
