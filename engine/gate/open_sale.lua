-- Opens a sale of a product at the gate. A newer sale replaces an older one, never the other way round, and
-- opening the same sale again changes nothing.
--
-- KEYS  fence, the product's sale
-- ARGV  writer (fence.py), the key names' prefix, sale id, stock, limit (0 none), quantity, starts_ms (0 none), ends_ms (0 none)
-- A closed gate takes the sale, too: a rebuild keeps a sale that is newer than those it knows.
-- Returns the generation (0 closed), the number of the writer's last write, and 1 if the product has had a sale before,
-- this one or another: whoever asks may be answered of an older one for a while.

local fence, sale = KEYS[1], KEYS[2]
local writer, prefix, sale_id = ARGV[1], ARGV[2], ARGV[3]
local current = redis.call('HGET', sale, 'sale_id')
if not current or tonumber(current) < tonumber(sale_id) then
  -- First: while the shard's slot moves to another node, Redis aborts the script if these buyers are not here.
  if current then
    redis.call('UNLINK', prefix .. 'buyers:' .. current)
  end
  redis.call('HSET', sale,
    'sale_id', sale_id, 'stock', ARGV[4], 'remaining', ARGV[4], 'released', 0,
    'limit', ARGV[5], 'quantity', ARGV[6], 'starts_ms', ARGV[7], 'ends_ms', ARGV[8])
end
local memory, time = redis.call('HMGET', fence, 'open', writer), redis.call('TIME')
local writes = math.max(tonumber(memory[2] or 0) + 1, time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', fence, writer, string.format('%.0f', writes))
return {tonumber(memory[1] or 0), writes, current and 1 or 0}
