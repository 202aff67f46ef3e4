-- Returns, by spaces, sale id and remaining units of each product's current sale, 0 0 where there is none.
--
-- KEYS  fence, which tells a cluster the shard
-- ARGV  the key names' prefix, the product ids by spaces

local found = {}
for product in string.gmatch(ARGV[2], '%d+') do
  local sale = redis.call('HMGET', ARGV[1] .. 'sale:' .. product, 'sale_id', 'remaining')
  found[#found + 1] = string.match(sale[1] or '0', '^%d+$') or '0'
  found[#found + 1] = string.match(sale[2] or '0', '^%-?%d+$') or '0'
end
return table.concat(found, ' ')
