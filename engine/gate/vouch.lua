-- Lets a writer ask whether a shard remembers, and whether it may sell: a server that is new may lack what only other
-- writers were answered, and sells nothing until they have asked, too.
--
-- KEYS  fence
-- ARGV  writer, generation and number of the last write that the writer has seen (fence.py), time in which every writer asks
--       a new server, milliseconds
--
-- Returns milliseconds for which the shard must sell nothing yet, 0 if it may sell. Answers the error CLOSED if the shard is
-- closed or older than what the writer has seen. A demoted primary answers READONLY.

local fence = KEYS[1]
local writer, seen_generation, seen_writes, wait_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

redis.call('HDEL', fence, '')
local memory = redis.call('HMGET', fence, 'open', writer, 'server', 'since')
local generation, writes = tonumber(memory[1] or 0), tonumber(memory[2] or 0)
if generation == 0 then return redis.error_reply('CLOSED the gate waits to be rebuilt') end
if generation < seen_generation or generation == seen_generation and writes < seen_writes then
  redis.call('HDEL', fence, 'open')
  return redis.error_reply('CLOSED the gate has lost what it answered before')
end

local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local since_ms = tonumber(memory[4] or 0)
if server and server ~= memory[3] then
  -- A shard that has never had a server's name is as new as the server.
  since_ms = memory[3] and now_ms or 0
  redis.call('HSET', fence, 'server', server, 'since', string.format('%.0f', since_ms))
end
local left_ms = since_ms + wait_ms - now_ms
return left_ms > 0 and left_ms <= wait_ms and left_ms or 0
