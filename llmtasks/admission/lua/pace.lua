-- At what pace a provider is used: a share of its configured limits in (0, 1]. Times in seconds.
--
-- What it really takes is found by CUBIC (RFC 9438, there for windows of TCP): a rate limit answered
-- to a call of the present pace cuts the share to SHRINK of itself; from there it grows back quickly
-- to near where it was cut, stays there, and then probes further, ever faster:
--     share(t) = GROWTH * (t - K)^3 + peak      K = cbrt((1 - SHRINK) * peak / GROWTH)
-- With this GROWTH a limit that is really half of the configured one is found anew every two minutes,
-- and one that is restored is used again within four.
local SHRINK = 0.8
local GROWTH = 1.4e-7
local SMALLEST = 0.02

-- What it says that it enforces, where that is less than what is configured, holds at once and in its own
-- dimension: the share is the smaller of the two. A provider may raise again what it has lowered, up to what
-- is configured. Calls end in another order than they were granted in, and the one granted last knows best.
-- What was not said again for STATED_FOR is forgotten: a provider may fall silent (another address).
local STATED_FOR = 600
local STATED = { 'stated_requests', 'stated_tokens', 'stated_input', 'stated_output' }

-- After its breaker closed a provider is used at RAMP_FROM, and at the full pace RAMP seconds later.
local RAMP = 10
local RAMP_FROM = 0.1

-- The share of its limits that the provider was found to take.
local function found_share(state)
  if state.cut_at == 0 then return 1 end
  local flat = ((1 - SHRINK) * state.peak / GROWTH) ^ (1 / 3)
  local found = GROWTH * (state.now - state.cut_at - flat) ^ 3 + state.peak
  return math.max(SMALLEST, math.min(1, found))
end

local function limits_stated(state)
  return state.stated_at > 0 and state.now < state.stated_at + STATED_FOR
end

-- The share that is used in dimension `d`.
local function share_in(state, d)
  local found = found_share(state)
  if not limits_stated(state) then return found end
  return math.max(SMALLEST, math.min(found, tonumber(state[STATED[d]])))
end

-- The share that is used where it is least.
local function share(state)
  local least = math.huge
  for d = 1, #STATED do least = math.min(least, share_in(state, d)) end
  return least
end

-- A call granted at `granted` was told that there are too many. Those granted before the pace was last
-- lowered tell of the one before.
local function cut(state, granted)
  if granted <= math.max(state.cut_at, state.slowed_at) then return end
  set(state, 'peak', share(state))
  set(state, 'cut_at', state.now)
end

local function ramp(state)
  local since = state.now - state.closed_at
  if since >= RAMP then return 1 end
  return RAMP_FROM + (1 - RAMP_FROM) * since / RAMP
end

-- Whether its pace may be less than the full one.
local function slowed(state)
  return state.cut_at > 0 or limits_stated(state) or state.now < state.closed_at + RAMP
end

-- How long `seconds` of configured quota of dimension `d` take. While the pace grows, a long call must not be
-- charged as if it stayed: what is lost by the rest of the ramp is the most that it can cost.
local function stretch(state, d, seconds)
  seconds = seconds / share_in(state, d)
  local now = ramp(state)
  if now == 1 then return seconds end
  local lost = (1 - now) ^ 2 / (1 - RAMP_FROM) * RAMP / 2
  return math.min(seconds / now, seconds + lost)
end
