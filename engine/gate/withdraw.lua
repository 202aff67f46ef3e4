-- Removes sales that the ledger does not offer, and what their buyers have bought.
--
-- KEYS  fence
-- ARGV  generation in which that was seen, the key names' prefix, then for each sale: product id (0 where only its
--       buyers are left), sale id
--
-- Removes nothing if the shard is closed or was rebuilt since. Returns the number of sales that were on offer here.

local prefix, removed = ARGV[2], 0
if redis.call('HGET', KEYS[1], 'open') ~= ARGV[1] then return 0 end
for at = 3, #ARGV, 2 do
  local sale, sale_id = prefix .. 'sale:' .. ARGV[at], ARGV[at + 1]
  if redis.call('HGET', sale, 'sale_id') == sale_id then removed = removed + redis.call('UNLINK', sale) end
  redis.call('UNLINK', prefix .. 'buyers:' .. sale_id)
end
return removed
