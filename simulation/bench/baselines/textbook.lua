-- Takes one unit if there is one. KEYS: the product's stock. Returns 1 if a unit was taken, 0 if none is left, -1 if
-- the stock is not known.
local stock = redis.call('GET', KEYS[1])
if not stock then return -1 end
if tonumber(stock) < 1 then return 0 end
redis.call('DECR', KEYS[1])
return 1
