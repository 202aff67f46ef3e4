-- Takes settled orders out of the pending set, and gives the units of failed ones back, each at most once: an order
-- id that is still pending is the evidence that its unit is out, and only who removes it may release.
--
-- KEYS  pending, then for each failed order's product: its sale
-- ARGV  the key names' prefix, number of orders without a release, their order ids,
--       then for each failed order: order id, place of its sale in KEYS, sale id, user id, quantity
--
-- Units go back only while the order's sale is the product's current one. Returns the number of units given back.

local pending, prefix = KEYS[1], ARGV[1]
local last = 2 + ARGV[2]

-- Lua's stack bounds how many arguments one call takes.
for first = 3, last, 4000 do
  redis.call('SREM', pending, unpack(ARGV, first, math.min(first + 3999, last)))
end

local released = 0
for at = last + 1, #ARGV, 5 do
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
return released
