-- Takes settled orders out of the pending set, and gives the units of failed ones back, each at most once: an order
-- id that is still pending is the evidence that its unit is out, and only who removes it may release.
--
-- KEYS  mark, pending, then for each failed order's product: its sale
-- ARGV  writer, generation and number of the last write that it has seen (mark.py), the key names' prefix, the ids of orders without a release (separated by
--       spaces), then for each failed order: order id, place of its sale in KEYS, sale id, user id, quantity
--
-- Units go back only while the order's sale is the product's current one. A shard that is older than what the writer has
-- seen is closed. Returns the generation (0 closed), the number of the writer's last write, and the units given back.

local mark, pending = KEYS[1], KEYS[2]
local writer, seen_generation, seen_writes, prefix = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local memory = redis.call('HMGET', mark, 'open', writer)
local generation, writes = tonumber(memory[1] or 0), tonumber(memory[2] or 0)
if generation > 0 and (generation < seen_generation or generation == seen_generation and writes < seen_writes) then
  redis.call('HDEL', mark, 'open')
  generation = 0
end

local plain = {}
for order in string.gmatch(ARGV[5], '%S+') do plain[#plain + 1] = order end
-- Lua's stack bounds how many arguments one call takes.
for first = 1, #plain, 4000 do
  redis.call('SREM', pending, unpack(plain, first, math.min(first + 3999, #plain)))
end

local released = 0
for at = 6, #ARGV, 5 do
  local order, sale, sale_id, user, quantity = ARGV[at], KEYS[tonumber(ARGV[at + 1])], unpack(ARGV, at + 2, at + 4)
  if redis.call('SREM', pending, order) == 1 and redis.call('HGET', sale, 'sale_id') == sale_id then
    redis.call('HINCRBY', sale, 'remaining', quantity)
    redis.call('HINCRBY', sale, 'released', quantity)
    local buyers = prefix .. 'buyers:' .. sale_id
    if redis.call('HEXISTS', buyers, user) == 1 then
      redis.call('HINCRBY', buyers, user, -quantity)
    end
    released = released + quantity
  end
end
return {generation, redis.call('HINCRBY', mark, writer, 1), released}
