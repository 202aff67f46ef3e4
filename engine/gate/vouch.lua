-- Lets a writer ask whether a shard remembers, and whether it may sell: a server that is new may lack what only other
-- writers were answered, and sells nothing until they have asked, too.
--
-- KEYS  fence, outbox
-- ARGV  writer, generation and number of the last write that the writer has seen (fence.py), time in which every writer asks
--       a new server, milliseconds, what this script said last of the server ("" nothing)
--
-- Returns milliseconds for which the shard must sell nothing yet, 0 if it may sell, and generation and run_id of the server. A
-- server is new to the shard, or, as an old primary that comes back, to the writer. Answers the error CLOSED if the shard is
-- closed or older than what the writer has seen. A demoted primary answers READONLY.

local fence, outbox = KEYS[1], KEYS[2]
local writer, seen_generation, seen_writes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local wait_ms, seen_server = tonumber(ARGV[4]), ARGV[5]

redis.call('HDEL', fence, '')
local memory = redis.call('HMGET', fence, 'open', writer, 'server', 'since', 'seen', 'newest', 'copies')
local generation, writes = tonumber(memory[1] or 0), tonumber(memory[2] or 0)
-- A rebuild takes a later one, though PostgreSQL may have forgotten it.
if generation < seen_generation and tonumber(memory[5] or 0) < seen_generation then
  redis.call('HSET', fence, 'seen', seen_generation)
end
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
-- A gate that was rebuilt since lacks nothing, and in the time in which all ask nobody begins anew.
local at_generation, at_server = string.match(seen_server, '(%d+) (%x+)')
local is_back = tonumber(at_generation) == generation and at_server ~= server
  and (now_ms < since_ms or now_ms >= since_ms + wait_ms)
if server and (server ~= memory[3] or is_back) then
  -- A shard that has never had a server's name is as new as the server.
  since_ms = memory[3] and now_ms or 0
  redis.call('HSET', fence, 'server', server, 'since', string.format('%.0f', since_ms))
  if memory[3] then
    -- What it sells from now on must not hide what its copy lacks.
    local stream, newest_ms = redis.pcall('XINFO', 'STREAM', outbox), tonumber(memory[6] or 0)
    for at = 1, #stream, 2 do
      if stream[at] == 'last-generated-id' then
        newest_ms = math.max(newest_ms, tonumber(string.match(stream[at + 1], '^%d+')))
      end
    end
    -- One that came back has sold meanwhile to those that knew it, which is no later than its newest order.
    local sells_ms = server == memory[3] and now_ms or since_ms + wait_ms
    local copies = string.format('%s %.0f %.0f,', server, newest_ms, sells_ms) .. (memory[7] or '')
    redis.call('HSET', fence, 'copies', string.match(copies, '^' .. string.rep('[^,]*,', 4)) or copies)
  end
end
local left_ms = since_ms + wait_ms - now_ms
local said = server and string.format('%.0f %s', generation, server) or ''
return {left_ms > 0 and left_ms <= wait_ms and left_ms or 0, said}
