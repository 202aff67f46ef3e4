-- wrk's part of the benchmark: posts a purchase, and says what it counted as one line of JSON.
--
-- Without an argument every request is the same bytes: user 101 buys product 1. With a number P each request
-- is for a random one of the products 1 to P.

wrk.method = 'POST'
wrk.path = '/purchase/buy'
wrk.headers['Content-Type'] = 'application/json'

local function body(product)
  return string.format('{"userId":101,"productId":%d}', product)
end

wrk.body = body(1)

function init(arguments)
  local products = tonumber(arguments[1])
  if not products then return end
  local requests = {}
  for product = 1, products do
    requests[product] = wrk.format(nil, nil, nil, body(product))
  end
  math.randomseed(1)
  request = function() return requests[math.random(products)] end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"rps":%.1f,"refused":%d,"socket_errors":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.requests / summary.duration * 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000
  ))
end
