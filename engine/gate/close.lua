-- Closes a shard, unless it has been rebuilt since.
--
-- KEYS  fence
-- ARGV  the latest generation that may be closed, the latest one that a writer has seen

if tonumber(redis.call('HGET', KEYS[1], 'open') or 0) <= tonumber(ARGV[1]) then
  if tonumber(redis.call('HGET', KEYS[1], 'seen') or 0) < tonumber(ARGV[2]) then
    -- This removes nothing. But a Redis that is full refuses what may need room, unless the script has written before.
    redis.call('HDEL', KEYS[1], '')
    redis.call('HSET', KEYS[1], 'seen', ARGV[2])
  end
  redis.call('HDEL', KEYS[1], 'open')
end
