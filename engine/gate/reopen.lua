-- Opens a shard that was rebuilt, in its new generation, and notes the server: another one is new (vouch.lua).
--
-- KEYS  fence
-- ARGV  generation, acceptance time of the newest order in the ledger (Unix milliseconds), 1 if orders may be under way of
--       which the shard knows nothing, else 0
--
-- Answers the error CLOSED if another process has begun to rebuild, or if Redis has forgotten that this one does.

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
local begun = redis.call('HGET', KEYS[1], 'rebuilding_on')
if server and begun and begun ~= server then
  return redis.error_reply('CLOSED another server may lack what was restored')
end
-- This removes nothing. But a Redis that is full refuses what may need room, unless the script has written before.
redis.call('HDEL', KEYS[1], '')
-- The fence is never without a field: in a slot that moves to another node, Redis makes no key anew.
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if field ~= 'rebuilding' then redis.call('HDEL', KEYS[1], field) end
end
if server then redis.call('HSET', KEYS[1], 'server', server, 'since', 0) end
redis.call('HSET', KEYS[1], 'open', ARGV[1], 'newest', ARGV[2])
if ARGV[3] == '1' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'doubt', string.format('%.0f', time[1] * 1000))
end
redis.call('HDEL', KEYS[1], 'rebuilding')
return 1
