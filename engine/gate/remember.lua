-- Remembers which orders Idempotency-Keys got; for a rebuild (restoring.py).
--
-- KEYS  fence
-- ARGV  generation, the key names' prefix, a line for each key: "<product>:<user>:<key>", order id, seconds to remember it
--
-- What the gate remembers by itself gives way: the key may have bought another order since, of which the gate was never
-- told. Answers the error CLOSED if another process has begun to rebuild, or if Redis has forgotten that this one does.

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end
for key, order, seconds in string.gmatch(ARGV[3], '(%S+) (%S+) (%d+)') do
  redis.call('SET', ARGV[2] .. 'answer:' .. key, order, 'EX', seconds)
end
return 1
