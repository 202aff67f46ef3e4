-- Forgets sales of products that the ledger does not know; for a rebuild (restoring.py).
--
-- KEYS  fence
-- ARGV  generation, the key names' prefix, the product ids by spaces
--
-- Answers the error CLOSED if another process has begun to rebuild, or if Redis has forgotten that this one does: a sale that
-- was opened since may have sold units.

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end
for product in string.gmatch(ARGV[3], '%d+') do redis.call('UNLINK', ARGV[2] .. 'sale:' .. product) end
return 1
