-- What a call will take, as far as calls before it tell. Tokens; what is learned is by provider.
--
-- Input that was estimated is corrected by how estimates turned out there.
--
-- Output where the provider counts what is really written: an answer may have many times what it has, and
-- to keep the most of it until the end would keep others from quota that is free. No more than HORIZON is
-- promised at any time: who reserves 16 times too much uses a fraction of the limit. So the share of their
-- bound that answers of the same task had is reserved, and settled when the truth is known: less is given
-- back, more is debt that later claims wait for. The window law of gcra.lua then holds for what was expected,
-- and over time, because of the debt, for what was written. How it is learned stands in learned.lua.
local function output_field(task)
  return 'output:' .. task
end

local function output_share(state, task)
  return tonumber(state[output_field(task)] or 1)
end

-- The costs of a claim as they are expected of the provider; `real_output`: it counts what is written.
local function expected(state, costs, exact, real_output, task)
  local total, input, output = costs[2], costs[3], costs[4]
  if not exact and state.estimated > 0 then
    input = math.ceil(costs[3] * state.counted / state.estimated)
  end
  if real_output then output = math.ceil(costs[4] * output_share(state, task)) end
  if input == costs[3] and output == costs[4] then return costs end
  return { costs[1], total - costs[3] - costs[4] + input + output, input, output }
end
