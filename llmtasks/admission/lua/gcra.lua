-- A reserving GCRA over several dimensions. Times in seconds; `rates[d]` is seconds of quota per
-- unit (60 / limit per minute; 0: no limit), `burst` the seconds of quota to be spent at once.
--
-- TAT ("theoretical arrival time") of a dimension is when its quota has paid for all that was
-- granted. A claim whose units take the lengths l[d] may start at TAT + l - max(burst, l), in every
-- dimension at once and not before now; starting at T, it moves every TAT to max(TAT, T) + l. So
-- granted units own disjoint stretches of time, and in any window of W seconds at most
--     limit * (W + max(burst, longest l)) / 60
-- are granted. Advancing from now instead of from T would break that for claims that wait. Units are those
-- that a call is expected to take (expected.lua); what it took in the end is made good by true_up.
--
-- A length is cost * rate at the full pace of the provider, and longer at a slower one (pace.lua).
local DIMENSIONS = { 'requests', 'tokens', 'input', 'output' }

-- Quota is promised at most this far ahead; who comes later waits in the line. Longer would let a
-- block or a crash invalidate many promises at once.
local HORIZON = 5
-- Times are kept with six digits: who comes exactly in time must not be late by the last of them.
local ROUNDING = 1e-4

-- How far into the future quota is already promised, in seconds, if those who wait for `quota`
-- (seconds of each dimension at the full pace) are served before. The same for every size of claim:
-- judged by its own start, a small claim could always slip in where a large one cannot.
local function promised(state, rates, quota)
  local ahead = 0
  for d, name in ipairs(DIMENSIONS) do
    if rates[d] > 0 then
      local seconds = math.max(0, state[name] - state.now)
      if quota then seconds = seconds + stretch(state, d, quota[d]) end
      if seconds > ahead then ahead = seconds end
    end
  end
  return ahead
end

-- How long each dimension's quota takes to pay for a claim.
local function lengths_of(state, rates, costs)
  local lengths = {}
  for d = 1, #DIMENSIONS do lengths[d] = costs[d] * rates[d] end
  if slowed(state) then
    for d = 1, #DIMENSIONS do lengths[d] = stretch(state, d, lengths[d]) end
  end
  return lengths
end

-- When a claim may start: not before now, not inside a block, not among calls that nobody knows of.
local function earliest(state, rates, lengths, burst)
  local start = math.max(state.now, state.blocked, state.unknown_until)
  for d, name in ipairs(DIMENSIONS) do
    if rates[d] > 0 then
      start = math.max(start, state[name] + lengths[d] - math.max(burst, lengths[d]))
    end
  end
  return start
end

local function reserve(state, rates, lengths, start)
  for d, name in ipairs(DIMENSIONS) do
    if rates[d] > 0 then set(state, name, math.max(state[name], start) + lengths[d]) end
  end
end

-- By how much each length is longer than at the full pace; false: not at all.
local function slowness(state, rates, costs, lengths)
  if not slowed(state) then return false end
  local slower = {}
  for d = 1, #DIMENSIONS do
    local length = costs[d] * rates[d]
    slower[d] = length > 0 and lengths[d] / length or 1
  end
  return slower
end

-- Correct what was reserved by `changes` units: negative gives back, positive is debt that later
-- claims wait for. Both at the pace they were reserved at. A TAT behind now counts as now wherever
-- it is used, so that giving back never saves up quota of the past.
local function true_up(state, rates, changes, slower)
  for d, name in ipairs(DIMENSIONS) do
    local seconds = changes[d] * rates[d] * (slower and slower[d] or 1)
    if seconds ~= 0 then set(state, name, math.max(state[name], state.now) + seconds) end
  end
end
