-- Opens a sale of a product at the gate. A newer sale replaces an older one, never the other way round, and
-- opening the same sale again changes nothing.
--
-- KEYS  the product's sale
-- ARGV  the key names' prefix, sale id, stock, limit (0 none), quantity, starts_ms (0 none), ends_ms (0 none)
-- Returns 1 if the sale was opened, 0 if the product has this one or a newer one already.

local prefix, sale_id = ARGV[1], ARGV[2]
local current = redis.call('HGET', KEYS[1], 'sale_id')
if current and tonumber(current) >= tonumber(sale_id) then return 0 end

redis.call('HSET', KEYS[1],
  'sale_id', sale_id, 'stock', ARGV[3], 'remaining', ARGV[3], 'released', 0,
  'limit', ARGV[4], 'quantity', ARGV[5], 'starts_ms', ARGV[6], 'ends_ms', ARGV[7])
if current then redis.call('UNLINK', prefix .. 'buyers:' .. current) end
return 1
