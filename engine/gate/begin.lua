-- Begins to rebuild a shard: it stays closed, and the scripts of earlier rebuilds are refused.
--
-- KEYS  fence, pending
-- ARGV  generation
--
-- Answers the error CLOSED, having changed nothing, if another process has opened the shard meanwhile, or has begun later, or
-- if a writer has seen this generation or a later one.

local memory = redis.call('HMGET', KEYS[1], 'open', 'rebuilding', 'seen')
local rebuilding, seen = tonumber(memory[2] or 0), tonumber(memory[3] or 0)
if memory[1] or rebuilding > tonumber(ARGV[1]) or seen >= tonumber(ARGV[1]) then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end
-- First: a Redis that is full refuses what may need room, unless the script has written something else before.
redis.call('UNLINK', KEYS[2])
-- The fence is never without a field: in a slot that moves to another node, Redis makes no key anew.
redis.call('HSET', KEYS[1], 'rebuilding', ARGV[1])
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if field ~= 'rebuilding' then redis.call('HDEL', KEYS[1], field) end
end
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
if server then redis.call('HSET', KEYS[1], 'rebuilding_on', server) end
return 1
