-- Sets a sale at the gate as the ledger knows it; for a rebuild (reconciliation.py).
--
-- KEYS  fence, sale
-- ARGV  generation, the key names' prefix, 1 for the first call for a sale and 0 for those that add to it,
--       sale id, stock, remaining, limit (0 none), quantity, starts_ms (0 none), ends_ms (0 none),
--       then user id and units of each buyer, if the sale has a limit
--
-- A sale that is newer than this one was opened meanwhile, and stays. Answers the error CLOSED if another process has
-- begun to rebuild, or if Redis has forgotten that this one does.

local fence, sale, prefix, sale_id = KEYS[1], KEYS[2], ARGV[2], ARGV[4]
if redis.call('HGET', fence, 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end

local current = redis.call('HGET', sale, 'sale_id')
if not current or tonumber(current) <= tonumber(sale_id) then
  if ARGV[3] == '1' then
    if current then redis.call('UNLINK', prefix .. 'buyers:' .. current) end
    redis.call('HSET', sale,
      'sale_id', sale_id, 'stock', ARGV[5], 'remaining', ARGV[6], 'released', 0,
      'limit', ARGV[7], 'quantity', ARGV[8], 'starts_ms', ARGV[9], 'ends_ms', ARGV[10])
  end
  if #ARGV > 10 then redis.call('HSET', prefix .. 'buyers:' .. sale_id, unpack(ARGV, 11)) end
end
return 1
