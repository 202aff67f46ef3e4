-- Adds what users have bought in a sale with a limit; for a rebuild (restoring.py).
--
-- KEYS  fence, the product's sale
-- ARGV  generation, the key names' prefix, sale id, by spaces user id and units of each buyer
--
-- Writes nothing if a newer sale was opened meanwhile. Answers the error CLOSED if another process has begun to rebuild, or
-- if Redis has forgotten that this one does.

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('CLOSED the rebuild was overtaken')
end
if redis.call('HGET', KEYS[2], 'sale_id') ~= ARGV[3] then return 0 end

local counts = {}
for number in string.gmatch(ARGV[4], '%d+') do counts[#counts + 1] = number end
redis.call('HSET', ARGV[2] .. 'buyers:' .. ARGV[3], unpack(counts))
return 1
