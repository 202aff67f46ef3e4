-- Sets sales at the gate as the ledger knows them; for a rebuild (restoring.py).
--
-- KEYS  fence
-- ARGV  generation, the key names' prefix, a line for each sale: product id, sale id, stock, remaining, limit (0 none),
--       quantity, starts_ms (0 none), ends_ms (0 none)
--
-- A sale that is newer than the one given was opened meanwhile, and stays. Answers the error CLOSED if another process has
-- begun to rebuild, or if Redis has forgotten that this one does.

local prefix = ARGV[2]
if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end

local line = '(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)'
for product, sale_id, stock, remaining, limit, quantity, starts_ms, ends_ms in string.gmatch(ARGV[3], line) do
  local sale = prefix .. 'sale:' .. product
  local current = redis.call('HGET', sale, 'sale_id')
  if not current or tonumber(current) <= tonumber(sale_id) then
    redis.call('UNLINK', prefix .. 'buyers:' .. sale_id, prefix .. 'buyers:' .. (current or sale_id))
    redis.call('HSET', sale,
      'sale_id', sale_id, 'stock', stock, 'remaining', remaining, 'released', 0,
      'limit', limit, 'quantity', quantity, 'starts_ms', starts_ms, 'ends_ms', ends_ms)
  end
end
return 1
