-- Reserves units for a whole batch of purchases and hands the accepted ones to the outbox, in one atomic step.
--
-- KEYS  mark, outbox, pending, then the sale of each product in the batch
-- ARGV  writer, generation and number of the last write that it has seen (mark.py),
--       order id without its last three hex digits, the key names' prefix, seconds a key is remembered,
--       then for each product: product id, number of purchases, their user ids, their Idempotency-Keys
--       (both separated by spaces; a key is written =key and its absence as "."; "" where nobody has one)
--
-- Returns the generation, the number of the writer's last write, and in one string a letter for each purchase, in
-- the order given, then the order ids of the replayed ones:
--   A accepted   R accepted before under the same key   S sold out   L limit reached
--   U unknown product   N not started   E ended
-- An accepted purchase's order id is the given one completed by its place in the batch.
-- Answers the error CLOSED, having reserved nothing, where the shard is closed or older than what the writer has seen.
--
-- All reading and deciding comes first, all writing last: a script that Redis refuses to let write
-- (out of memory, disk error) fails at its first write and leaves nothing behind.

local mark, outbox, pending = KEYS[1], KEYS[2], KEYS[3]
local writer, seen_generation, seen_writes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local order_stem, prefix, remember_s = ARGV[4], ARGV[5], ARGV[6]

local memory = redis.call('HMGET', mark, 'open', writer)
local generation, writes = tonumber(memory[1] or 0), tonumber(memory[2] or 0)
if generation == 0 then return redis.error_reply('CLOSED the gate waits to be rebuilt') end
if generation < seen_generation or generation == seen_generation and writes < seen_writes then
  redis.call('HDEL', mark, 'open')
  return redis.error_reply('CLOSED the gate has lost what it answered before')
end

local letters, replayed = {}, {}
local lines, orders = {}, {}
local remaining_of = {}              -- sale key → units left after this batch
local counts_of = {}                 -- buyers key → {user → units bought}
local order_of = {}                  -- answer key → order id
local place = 0
local now_ms

local function clock_ms()
  if not now_ms then
    local time = redis.call('TIME')
    now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now_ms
end

-- The letter that answers everybody who asks for this product, or nil if units may be left.
local function refuse_all(sale)
  if not sale.id then return 'U' end
  if sale.starts_ms > 0 and clock_ms() < sale.starts_ms then return 'N' end
  if sale.ends_ms > 0 and clock_ms() >= sale.ends_ms then return 'E' end
  if sale.remaining < sale.quantity then return 'S' end
end

local function read_sale(key)
  local f = redis.call('HMGET', key, 'sale_id', 'remaining', 'limit', 'quantity', 'starts_ms', 'ends_ms')
  if not f[1] then return {} end
  return {
    id = f[1], remaining = tonumber(f[2]), limit = tonumber(f[3]), quantity = tonumber(f[4]),
    starts_ms = tonumber(f[5]), ends_ms = tonumber(f[6]),
  }
end

-- True if the user may take one more purchase; counts it if so.
local function count_buyer(sale, user)
  local key = prefix .. 'buyers:' .. sale.id
  local counts = counts_of[key]
  if not counts then
    counts = {}
    counts_of[key] = counts
  end
  local bought = counts[user] or tonumber(redis.call('HGET', key, user) or 0)
  if bought + sale.quantity > sale.limit then return false end
  counts[user] = bought + sale.quantity
  return true
end

-- What follows the user in an outbox line (reservation.py).
local function tail(sale, product, key)
  local words = {product, sale.id, sale.quantity, string.format('%.0f', clock_ms()), key and cjson.encode(key) or nil}
  return ',' .. table.concat(words, ',') .. ']'
end

local function accept(sale, product, user, key)
  local order = string.format('%s%03x', order_stem, place)
  lines[#lines + 1] = '["' .. order .. '",' .. user .. tail(sale, product, key)
  orders[#orders + 1] = order
  sale.remaining = sale.remaining - sale.quantity
  return order
end

local function decide(sale, product, user, key)
  local answer_key
  if key then
    answer_key = prefix .. 'answer:' .. product .. ':' .. user .. ':' .. key
    local order = order_of[answer_key] or redis.call('GET', answer_key)
    if order then
      replayed[#replayed + 1] = order
      return 'R'
    end
  end
  local refusal = refuse_all(sale)
  if refusal then return refusal end
  if sale.limit > 0 and not count_buyer(sale, user) then return 'L' end
  local order = accept(sale, product, user, key)
  if answer_key then order_of[answer_key] = order end
  return 'A'
end

for group = 1, #KEYS - 3 do
  local at = 4 * group + 3
  local product, size, users, keys = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
  local sale = read_sale(KEYS[group + 3])
  local refusal = keys == '' and refuse_all(sale)
  if refusal then
    letters[#letters + 1] = string.rep(refusal, size)
    place = place + size
  elseif keys == '' and sale.limit == 0 then
    -- First come, first served, with nothing to look up for anybody: most of what a crowd asks.
    local takes = math.min(size, math.floor(sale.remaining / sale.quantity))
    local head, rest = '["' .. order_stem, tail(sale, product)
    local next_user = string.gmatch(users, '%d+')
    for number = place, place + takes - 1 do
      local place = string.format('%03x', number)
      lines[#lines + 1] = head .. place .. '",' .. next_user() .. rest
      orders[#orders + 1] = order_stem .. place
    end
    letters[#letters + 1] = string.rep('A', takes) .. string.rep('S', size - takes)
    remaining_of[KEYS[group + 3]] = sale.remaining - takes * sale.quantity
    place = place + size
  else
    local before = sale.remaining
    local next_key = keys ~= '' and string.gmatch(keys, '%S+')
    for user in string.gmatch(users, '%d+') do
      local token = next_key and next_key()
      letters[#letters + 1] = decide(sale, product, user, token and token ~= '.' and string.sub(token, 2))
      place = place + 1
    end
    if sale.remaining ~= before then remaining_of[KEYS[group + 3]] = sale.remaining end
  end
end

-- Lua's stack bounds how many arguments one call takes.
local function write(command, key, values)
  for first = 1, #values, 4000 do
    redis.call(command, key, unpack(values, first, math.min(first + 3999, #values)))
  end
end

if #lines > 0 then
  redis.call('XADD', outbox, '*', 'purchases', table.concat(lines, '\n'))
  write('SADD', pending, orders)
  for key, remaining in pairs(remaining_of) do
    redis.call('HSET', key, 'remaining', remaining)
  end
  for key, counts in pairs(counts_of) do
    local pairs_of_user = {}
    for user, count in pairs(counts) do
      pairs_of_user[#pairs_of_user + 1] = user
      pairs_of_user[#pairs_of_user + 1] = count
    end
    write('HSET', key, pairs_of_user)
  end
  for key, order in pairs(order_of) do
    redis.call('SET', key, order, 'EX', remember_s)
  end
  writes = redis.call('HINCRBY', mark, writer, 1)
end

return {generation, writes, table.concat(letters) .. table.concat(replayed)}
