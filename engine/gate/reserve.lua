-- Reserves units for a whole batch of purchases and hands the accepted ones to the outbox, in one atomic step.
--
-- KEYS  fence, outbox, pending
-- ARGV  writer, generation and number of the last write that the writer has seen (fence.py),
--       stem of the batch's order ids (order_id.py), the key names' prefix, seconds a key is remembered,
--       the purchases: a line for each product, "<product id> <number> <user ids, by commas>" and, if one of them has
--       an Idempotency-Key, " =<key>" or " ." for each of them
--
-- Returns the generation, the number of the writer's last write, and in one string a code for each purchase, in the
-- order given, then the order ids of the repeated ones (R):
--   A accepted   R accepted before under the same key   S sold out   L limit reached
--   U unknown product   N not started   E ended
-- The accepted ones have their places in the order given, from 0. Answers the error CLOSED, having reserved nothing, if
-- the shard is closed or older than what the writer has seen.
--
-- All reading and deciding comes first, all writing last: a script that Redis refuses to let write
-- (out of memory, disk error) fails at its first write and leaves nothing behind.

local fence, outbox, pending = KEYS[1], KEYS[2], KEYS[3]
local writer, seen_generation, seen_writes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local stem, prefix, remember_s = ARGV[4], ARGV[5], ARGV[6]

local memory = redis.call('HMGET', fence, 'open', writer)
local generation, writes = tonumber(memory[1] or 0), tonumber(memory[2] or 0)
if generation == 0 then return redis.error_reply('CLOSED the gate waits to be rebuilt') end
if generation < seen_generation or generation == seen_generation and writes < seen_writes then
  redis.call('HDEL', fence, 'open')
  return redis.error_reply('CLOSED the gate has lost what it answered before')
end

local codes, repeated = {}, {}
local lines = {}                     -- lots, what goes to the outbox: a line for each product (lot.py)
local accepted = 0                   -- orders in those lines
local remaining_of = {}              -- sale key → units left after this batch
local counts_of = {}                 -- buyers key → {user → units bought}
local order_of = {}                  -- answer key → order id
local now_ms, now                    -- the clock, and its digits

local function clock_ms()
  if not now_ms then
    local time = redis.call('TIME')
    now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    now = string.format('%d', now_ms)
  end
  return now_ms
end

-- The code for everybody who asks for this product, or nil if units may be left.
local function refuse_all(sale)
  if not sale.id then return 'U' end
  if sale.starts_ms > 0 and clock_ms() < sale.starts_ms then return 'N' end
  if sale.ends_ms > 0 and clock_ms() >= sale.ends_ms then return 'E' end
  if sale.remaining < sale.quantity then return 'S' end
end

local function number(digits)
  return digits == '0' and 0 or tonumber(digits)
end

local function read_sale(key)
  local f = redis.call('HMGET', key, 'sale_id', 'remaining', 'limit', 'quantity', 'starts_ms', 'ends_ms')
  if not f[1] then return {} end
  return {
    key = key, id = f[1], remaining = tonumber(f[2]), limit = number(f[3]), quantity = tonumber(f[4]),
    starts_ms = number(f[5]), ends_ms = number(f[6]),
  }
end

-- Takes the units of `count` purchases; `users` and `keys`, which may be nil, are lists in JSON.
local function take(sale, product, count, users, keys)
  clock_ms()
  lines[#lines + 1] = '["' .. stem .. '",' .. accepted .. ',' .. product .. ',' .. sale.id .. ',' .. sale.quantity .. ','
    .. now .. ',' .. users .. (keys and ',' .. keys or '') .. ']'
  accepted = accepted + count
  remaining_of[sale.key] = sale.remaining - count * sale.quantity
end

-- The first `count` members of a longer list with commas.
local function cut(list, count)
  local comma = 0
  for _ = 1, count do comma = string.find(list, ',', comma + 1, true) end
  return string.sub(list, 1, comma - 1)
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

-- The code for one purchase; its order gets this place if it is accepted.
local function decide(sale, product, user, key, place)
  local answer_key
  if key then
    answer_key = prefix .. 'answer:' .. product .. ':' .. user .. ':' .. key
    local order = order_of[answer_key] or redis.call('GET', answer_key)
    if order then
      repeated[#repeated + 1] = order
      return 'R'
    end
  end
  local refusal = refuse_all(sale)
  if refusal then return refusal end
  if sale.limit > 0 and not count_buyer(sale, user) then return 'L' end
  if answer_key then order_of[answer_key] = stem .. string.format('%03x', place) end
  return 'A'
end

-- Decides one purchase after the other. `tokens` holds their keys, "" where nobody has one.
local function decide_each(sale, product, users, tokens)
  local next_token = string.gmatch(tokens, '%S+')
  local buyers, keys, units = {}, {}, sale.remaining
  for user in string.gmatch(users, '%d+') do
    local token = next_token()
    local key = token and token ~= '.' and string.sub(token, 2)
    local code = decide(sale, product, user, key, accepted + #buyers)
    codes[#codes + 1] = code
    if code == 'A' then
      buyers[#buyers + 1] = user
      keys[#keys + 1] = key and cjson.encode(key) or 'null'
      sale.remaining = sale.remaining - sale.quantity
    end
  end
  if #buyers > 0 then
    sale.remaining = units
    take(sale, product, #buyers, '[' .. table.concat(buyers, ',') .. ']',
      tokens ~= '' and '[' .. table.concat(keys, ',') .. ']' or nil)
  end
end

for product, size, users, tokens in string.gmatch(ARGV[7], '(%d+) (%d+) ([%d,]+)([^\n]*)') do
  local sale = read_sale(prefix .. 'sale:' .. product)
  local refusal = tokens == '' and refuse_all(sale)
  if refusal then
    codes[#codes + 1] = string.rep(refusal, size)
  elseif tokens == '' and sale.limit == 0 then
    -- First come, first served, with nothing to look up for a user: most of what a crowd asks.
    local takes = math.min(size, math.floor(sale.remaining / sale.quantity))
    codes[#codes + 1] = string.rep('A', takes) .. string.rep('S', size - takes)
    if takes < tonumber(size) then users = cut(users, takes) end
    take(sale, product, takes, '[' .. users .. ']')
  else
    decide_each(sale, product, users, tokens)
  end
end

-- Lua's stack bounds how many arguments one call takes.
local function write(command, key, values)
  for first = 1, #values, 4000 do
    redis.call(command, key, unpack(values, first, math.min(first + 3999, #values)))
  end
end

if accepted > 0 then
  redis.call('XADD', outbox, '*', 'orders', accepted, 'purchases', table.concat(lines, '\n'))
  redis.call('HSET', pending, stem, string.rep('1', accepted))
  for key, remaining in pairs(remaining_of) do
    -- Redis takes longer to write a number in digits than Lua.
    redis.call('HSET', key, 'remaining', string.format('%d', remaining))
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
  writes = math.max(writes + 1, clock_ms())
  redis.call('HSET', fence, writer, string.format('%.0f', writes))
end

return {generation, writes, table.concat(codes) .. table.concat(repeated)}
