-- Remembers which orders Idempotency-Keys got; for a rebuild (reconciliation.py).
--
-- KEYS  fence
-- ARGV  generation, the key names' prefix, then for each key: "<product>:<user>:<key>", order id, seconds to remember it
--
-- What the gate remembers by itself stays. Answers the error CLOSED if another process has begun to rebuild, or if Redis
-- has forgotten that this one does.

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end
for at = 3, #ARGV, 3 do
  redis.call('SET', ARGV[2] .. 'answer:' .. ARGV[at], ARGV[at + 1], 'NX', 'EX', ARGV[at + 2])
end
return 1
