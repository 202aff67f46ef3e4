-- Puts a copy in place of all that the gate holds, as another server would have it.
--
-- KEYS  what the server calls itself from now on
-- ARGV  name and serialised value of each key

for _, name in ipairs(redis.call('KEYS', 'fg:*')) do redis.call('DEL', name) end
for at = 1, #ARGV, 2 do redis.call('RESTORE', ARGV[at], 0, ARGV[at + 1]) end
redis.call('SET', 'identity', KEYS[1])
return 1
