-- Closes a shard, unless it has been rebuilt since.
--
-- KEYS  fence
-- ARGV  the latest generation that may be closed

if tonumber(redis.call('HGET', KEYS[1], 'open') or 0) <= tonumber(ARGV[1]) then redis.call('HDEL', KEYS[1], 'open') end
