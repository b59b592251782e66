-- What the scripts share. Numbers are written by whole(): Lua's own way turns 1e15 into text that is
-- no offset.

local KEPT, VOLATILE, ROSTER = 0, 1, 2

local function whole(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Write a field of a hash; '' is no value, and takes the field away.
local function put(key, field, value)
  if value == '' then
    redis.call('HDEL', key, field)
  else
    redis.call('HSET', key, field, value)
  end
end

-- Changes with every restart and promotion: from then on writes may be missing.
local function replication_id()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
end

-- What stands before the body in a message: relay/broker/keyspace.py reads it.
local function header(kind, epoch, offset)
  return struct.pack('>Bc8I8', kind, epoch, offset)
end

-- Return where a call stands. Only reads; adopt() writes down what is new about it.
local function place(meta, fresh, replid)
  local kept = redis.call('HMGET', meta, 'offset', 'replid', 'epochs')
  if not (kept[1] and kept[2] and kept[3]) then
    return {offset = 0, epoch = fresh, epochs = fresh .. ':1', is_new = true, is_first = true}
  end
  local offset = tonumber(kept[1])
  if kept[2] == replid then
    return {offset = offset, epoch = string.match(kept[3], '([^,:]+):%d+$'), epochs = kept[3]}
  end
  local epochs = {}
  for epoch in string.gmatch(kept[3], '[^,]+') do
    epochs[#epochs + 1] = epoch
  end
  epochs[#epochs + 1] = fresh .. ':' .. whole(offset + 1)
  local first = math.max(1, #epochs - 7)
  return {
    offset = offset, epoch = fresh, epochs = table.concat(epochs, ',', first), is_new = true,
  }
end

-- Begin the new epoch of a place. History without its meta belongs to positions nobody knows.
local function adopt(meta, history, at, replid)
  if at.is_first then
    redis.call('DEL', history)
  end
  if at.is_new then
    redis.call('HSET', meta, 'offset', whole(at.offset), 'replid', replid, 'epochs', at.epochs)
  end
end

local function published_ms(id)
  return tonumber(string.match(id, '-(%d+)$'))
end

-- Let a delivery wait until it is due, or no longer. The count of their bytes lies in the state.
local function wait_until(state, waiting, waiting_at, member, due, text)
  local id = string.match(member, '^[^|]*')
  redis.call('HINCRBY', state, 'waiting', #text - redis.call('HSTRLEN', waiting, id))
  redis.call('HSET', waiting, id, text)
  redis.call('ZADD', waiting_at, due, member)
end

local function wait_no_more(state, waiting, waiting_at, member)
  local id = string.match(member, '^[^|]*')
  local size = redis.call('HSTRLEN', waiting, id)
  redis.call('HINCRBY', state, 'waiting', 0 - size)  -- -0 is no integer to Redis
  redis.call('HDEL', waiting, id)
  redis.call('ZREM', waiting_at, member)
end

-- Put a dead letter in its place, and drop the oldest above the bound in bytes. The count of bytes
-- lies in the state. Returns how many were dropped.
local function bury(state, dead, dead_at, id, at, text, bound)
  local size = #text - redis.call('HSTRLEN', dead, id)
  redis.call('HSET', dead, id, text)
  redis.call('ZADD', dead_at, at, id)
  local bytes = redis.call('HINCRBY', state, 'dead', whole(size))
  local dropped = 0
  while bytes > bound and redis.call('ZCARD', dead_at) > 1 do
    local oldest = redis.call('ZPOPMIN', dead_at)[1]
    bytes = redis.call('HINCRBY', state, 'dead', whole(-redis.call('HSTRLEN', dead, oldest)))
    redis.call('HDEL', dead, oldest)
    dropped = dropped + 1
  end
  if dropped > 0 then
    redis.call('HINCRBY', state, 'dropped', dropped)
  end
  return dropped
end
