-- The time: seconds since the epoch on the server's clock, as a double (microseconds survive).
-- A file of its own, so that tests can put a clock they turn by hand in its place.
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end
