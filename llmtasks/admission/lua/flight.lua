-- Single flight: of all who ask one question at the same time, one leads (waits, calls, tries again)
-- and the others follow: they hold neither quota nor slot, and are woken as soon as there is an answer
-- or the leader has gone without one. Seconds.
--
-- One small value a question, beside its cached answer, packed; it ends LEASE after it was last written:
--   leaders    by waiter: { end of its lease, priority, 1 once it was granted a call }
--   followers  the processes to be woken, as keys
--   failed     how many leaders have ended with an error. One more may lead for each, or a question that
--              nobody can answer would be asked by all who want it, one after the other: so they are
--              through in as many rounds as their number has binary digits.
--
-- A leader that died stands in nobody's way when its lease has ended; it counts as none that failed.
local LEASE = 10

local function load_flight(key, now)
  local packed = redis.call('GET', key)
  local flight = packed and cmsgpack.unpack(packed) or { leaders = {}, followers = {}, failed = 0 }
  flight.key, flight.now, flight.leading = key, now, 0
  for waiter, leader in pairs(flight.leaders) do
    -- (An end that no lease of now can have was written under another clock.)
    if leader[1] <= now or leader[1] > now + LEASE + CLOCK_STEP then
      flight.leaders[waiter] = nil
    else
      flight.leading = flight.leading + 1
    end
  end
  return flight
end

local function save_flight(flight)
  if not next(flight.leaders) and flight.failed == 0 then
    redis.call('DEL', flight.key)
    return
  end
  local kept = { leaders = flight.leaders, followers = flight.followers, failed = flight.failed }
  redis.call('SET', flight.key, cmsgpack.pack(kept), 'PX', LEASE * 1000)
end

local function leads(flight, waiter)
  return flight.leaders[waiter] ~= nil
end

-- A leader that still waits for its grant and has less priority, if there is one: what is urgent must
-- not wait for it.
local function weaker(flight, priority)
  for waiter, leader in pairs(flight.leaders) do
    if leader[3] == 0 and leader[2] < priority then return waiter end
  end
  return nil
end

local function may_lead(flight, waiter, priority)
  return leads(flight, waiter) or flight.leading <= flight.failed
    or weaker(flight, priority) ~= nil
end

-- Begins, or goes on, to lead. For those who may.
local function lead(flight, waiter, priority, granted)
  if not leads(flight, waiter) and flight.leading > flight.failed then
    local other = weaker(flight, priority)
    flight.leaders[other] = nil
    wake_waiter(other)
  end
  flight.leaders[waiter] = { flight.now + LEASE, priority, granted }
  save_flight(flight)
end

-- Seconds after which to ask again if nobody wakes the waiter before.
local function follow(flight, waiter)
  local process = process_of(waiter)
  if not flight.followers[process] then
    flight.followers[process] = 1
    save_flight(flight)
  end
  local soonest = math.huge
  for _, leader in pairs(flight.leaders) do soonest = math.min(soonest, leader[1] - flight.now) end
  return soonest
end

-- Ends a waiter's part, and wakes all who wait for it under the question's name: the followers, and
-- other leaders that wait.
local function part(flight, waiter, name)
  flight.leaders[waiter] = nil
  for other in pairs(flight.leaders) do flight.followers[process_of(other)] = 1 end
  for process in pairs(flight.followers) do wake(process, name) end
  flight.followers = {}
  save_flight(flight)
end

-- There is an answer, whoever brought it.
local function land(flight, waiter, name)
  flight.failed = 0
  part(flight, waiter, name)
end
