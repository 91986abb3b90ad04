-- A reserving GCRA over several dimensions. Times in seconds; `rates[d]` is seconds of quota per
-- unit (60 / limit per minute; 0: no limit), `burst` the seconds of quota to be spent at once.
--
-- TAT ("theoretical arrival time") of a dimension is when its quota has paid for all that was
-- granted. A claim of c units may start at TAT + c*rate - max(burst, c*rate), in every dimension at
-- once and not before now; starting at T, it moves every TAT to max(TAT, T) + c*rate. So granted
-- units own disjoint stretches of time, and in any window of W seconds at most
--     limit * (W + max(burst, longest c*rate)) / 60
-- are granted. Advancing from now instead of from T would break that for claims that wait.
local DIMENSIONS = { 'requests', 'tokens', 'input', 'output' }

-- How far into the future quota is already promised, in seconds. The same for every size of claim:
-- judged by its own start, a small claim could always slip in where a large one cannot.
local function promised(state, rates)
  local ahead = 0
  for d, name in ipairs(DIMENSIONS) do
    if rates[d] > 0 then ahead = math.max(ahead, state[name] - state.now) end
  end
  return ahead
end

-- When a claim of `costs` may start: not before now, not inside a block.
local function earliest(state, rates, costs, burst)
  local start = math.max(state.now, state.blocked)
  for d, name in ipairs(DIMENSIONS) do
    if rates[d] > 0 then
      local length = costs[d] * rates[d]
      start = math.max(start, state[name] + length - math.max(burst, length))
    end
  end
  return start
end

local function reserve(state, rates, costs, start)
  for d, name in ipairs(DIMENSIONS) do
    if rates[d] > 0 then
      set(state, name, math.max(state[name], start) + costs[d] * rates[d])
    end
  end
end

-- Correct what was reserved by `changes` units: negative gives back, positive is debt that later
-- claims wait for. A TAT behind now counts as now wherever it is used, so that giving back never
-- saves up quota of the past.
local function true_up(state, rates, changes)
  for d, name in ipairs(DIMENSIONS) do
    local seconds = changes[d] * rates[d]
    if seconds ~= 0 then set(state, name, math.max(state[name], state.now) + seconds) end
  end
end
