-- Takes settled orders out of the pending set, and releases the units of failed ones, each at most once: an order that is
-- still pending is the evidence that its unit is out, and only the call that removes it may release the unit.
--
-- KEYS  fence, pending, then for each failed order's product: its sale
-- ARGV  writer, generation and number of the last write that the writer has seen (fence.py), the key names' prefix,
--       orders without a release: stem of a batch (order_id.py), first place and number of each run of them, by spaces,
--       what the ledger has confirmed: a line for each batch, its stem, then first place, number, product and quantity of
--       each lot, by spaces, and for how many seconds it is kept for those who look,
--       then for each failed order: stem, place in its batch, place of its sale in KEYS, sale id, user id, quantity
--
-- Units go back only while the order's sale is the product's current one. A shard that is older than what the writer has
-- seen is closed. Returns the generation (0 closed), the number of the writer's last write, and the units released.
--
-- All reading comes first, all writing last: while the shard's slot moves to another node, Redis aborts a script that
-- reaches for a key that is not here, and takes nothing back of what it wrote before.

local fence, pending = KEYS[1], KEYS[2]
local writer, seen_generation, seen_writes, prefix = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local memory = redis.call('HMGET', fence, 'open', writer)
local generation, writes = tonumber(memory[1] or 0), tonumber(memory[2] or 0)
if generation > 0 and (generation < seen_generation or generation == seen_generation and writes < seen_writes) then
  redis.call('HDEL', fence, 'open')
  generation = 0
end

local changes = {}                   -- commands that write, in their order
local digits_of = {}                 -- stem → its digits after these commands, false if it has none

local function later(...) changes[#changes + 1] = {...} end

-- Takes `count` orders of a batch, from a place on, out of the pending set (clearing.py); how many of them were in it.
local function clear(stem, first, count)
  local digits = digits_of[stem]
  if digits == nil then digits = redis.call('HGET', pending, stem) end
  if not digits then return 0 end
  local before, after = string.sub(digits, 1, first), string.sub(digits, first + count + 1)
  local cleared, were_pending = string.gsub(string.sub(digits, first + 1, first + count), '1', '0')
  if not string.find(before, '1', 1, true) and not string.find(after, '1', 1, true) then
    digits_of[stem] = false
    later('HDEL', pending, stem)
  elseif were_pending > 0 then
    digits_of[stem] = before .. cleared .. after
    later('HSET', pending, stem, digits_of[stem])
  end
  return were_pending
end

for stem, first, count in string.gmatch(ARGV[5], '(%S+) (%d+) (%d+)') do clear(stem, first, count) end

local most = 1500                    -- bytes of a batch's lots, which those who look have to read
for stem, lots in string.gmatch(ARGV[6], '(%S+)([ %d]+)') do
  local key = prefix .. 'confirmed:' .. stem
  local kept = (redis.call('GET', key) or '') .. lots
  if #kept <= most then later('SET', key, kept, 'EX', ARGV[7]) end
end

local released = 0
for at = 8, #ARGV, 6 do
  local stem, place, sale, sale_id, user, quantity = ARGV[at], ARGV[at + 1], KEYS[tonumber(ARGV[at + 2])], unpack(ARGV, at + 3, at + 5)
  if clear(stem, place, 1) == 1 and redis.call('HGET', sale, 'sale_id') == sale_id then
    later('HINCRBY', sale, 'remaining', quantity)
    later('HINCRBY', sale, 'released', quantity)
    local buyers = prefix .. 'buyers:' .. sale_id
    if redis.call('HEXISTS', buyers, user) == 1 then
      later('HINCRBY', buyers, user, -quantity)
    end
    released = released + quantity
  end
end
local time = redis.call('TIME')
writes = math.max(writes + 1, time[1] * 1000 + math.floor(time[2] / 1000))
for _, change in ipairs(changes) do redis.call(unpack(change)) end
redis.call('HSET', fence, writer, string.format('%.0f', writes))
return {generation, writes, released}
