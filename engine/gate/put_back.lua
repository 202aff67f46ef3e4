-- Appends lots to the outbox, behind all others. The entry has the time of the newest one: the stream goes on to tell when the
-- newest order was accepted.
--
-- KEYS  outbox
-- ARGV  number of orders, the lots as lines

local last = '0-0'
local stream = redis.pcall('XINFO', 'STREAM', KEYS[1])
for at = 1, #stream, 2 do
  if stream[at] == 'last-generated-id' then last = stream[at + 1] end
end
local ms, number = string.match(last, '^(%d+)-(%d+)$')
redis.call('XADD', KEYS[1], string.format('%s-%.0f', ms, number + 1), 'orders', ARGV[1], 'purchases', ARGV[2])
