-- Takes one unit if there is one. KEYS: the product's stock. Returns 1 if a unit was taken, 0 if none is left.
local stock = tonumber(redis.call('GET', KEYS[1]) or '0')
if stock < 1 then return 0 end
redis.call('DECR', KEYS[1])
return 1
