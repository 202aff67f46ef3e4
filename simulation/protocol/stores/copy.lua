-- Returns name and serialised value of each of the gate's keys.

local copy = {}
for _, name in ipairs(redis.call('KEYS', 'fg:*')) do copy[#copy + 1] = {name, redis.call('DUMP', name)} end
return copy
