-- Which of the providers that can go shall go. `delay` in seconds from now.
--
-- Ranks first: not tried yet before tried, weighted before standby (weight 0). Within the best
-- rank, those that can go within SLACK of the soonest take turns by smooth weighted round robin:
-- everyone earns its weight, the richest goes and pays the sum. Exact over time, for the fleet.
local SLACK = 1.0

local function rank(provider)
  return (provider.tried and 2 or 0) + (provider.weight == 0 and 1 or 0)
end

-- Candidates of the best rank that are soon enough to compete.
local function competitors(candidates)
  local best, soonest = math.huge, math.huge
  for _, candidate in ipairs(candidates) do
    local r = rank(candidate)
    if r < best then best, soonest = r, candidate.delay
    elseif r == best then soonest = math.min(soonest, candidate.delay) end
  end
  local found = {}
  for _, candidate in ipairs(candidates) do
    if rank(candidate) == best and candidate.delay <= soonest + SLACK then
      found[#found + 1] = candidate
    end
  end
  return found
end

local function take_turn(candidates)
  local chosen, total = nil, 0
  for _, candidate in ipairs(candidates) do
    -- Standbys compete only with each other, as equals.
    local weight = candidate.weight > 0 and candidate.weight or 1
    total = total + weight
    set(candidate.state, 'credit', candidate.state.credit + weight)
    if not chosen or candidate.state.credit > chosen.state.credit then chosen = candidate end
  end
  set(chosen.state, 'credit', chosen.state.credit - total)
  return chosen
end
