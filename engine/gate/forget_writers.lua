-- Takes writers out of a shard's fence that have written nothing for so long that no process uses their names any more.
--
-- KEYS  fence
-- ARGV  how long, milliseconds
--
-- A number from before engines numbered their writes by the time (fence.py) is no time, and stays until the next rebuild.
-- Returns how many were taken out.

local time = redis.call('TIME')
local before = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(ARGV[1])
local fields, gone = redis.call('HGETALL', KEYS[1]), 0
for at = 1, #fields, 2 do
  local written = tonumber(fields[at + 1])
  if string.find(fields[at], '^%x+$') and #fields[at] == 16 and written > 1e12 and written < before then
    gone = gone + redis.call('HDEL', KEYS[1], fields[at])
  end
end
return gone
