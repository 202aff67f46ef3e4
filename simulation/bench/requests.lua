-- wrk's part of the benchmark: sends the requests of a file in turn, and says what it counted as one line of JSON.
--
-- In the file, each request follows a line with its length in bytes.

local function read(name)
  local file, requests = assert(io.open(name, 'rb')), {}
  local length = file:read('*n')
  while length do
    file:read(1)
    requests[#requests + 1] = file:read(length)
    length = file:read('*n')
  end
  file:close()
  return requests
end

function setup(thread)
  worker = thread
end

function init(arguments)
  local requests = read(arguments[1])
  if #requests == 1 then
    -- wrk asks for its format once, and sends those bytes without a call of Lua for each request.
    wrk.format = function() return requests[1] end
  else
    local last = 0
    request = function()
      last = last % #requests + 1
      return requests[last]
    end
  end
  ready_s = os.clock()
end

function done(summary, latency)
  local errors = summary.errors
  local cpu_s = os.clock() - worker:get('ready_s')
  io.write(string.format(
    '{"requests":%d,"rps":%.1f,"refused":%d,"socket_errors":%d,"p50_ms":%.3f,"p99_ms":%.3f,"cpu_s":{"wrk":%.6f}}\n',
    summary.requests, summary.requests / summary.duration * 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, cpu_s
  ))
end
