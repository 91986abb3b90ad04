-- What a call will take, as far as calls before it tell. Tokens; what is learned is by provider.
--
-- Input that was estimated is corrected by how estimates turned out there: a moving average over about
-- 1 / RECENT of them, within bounds.
--
-- Output where the provider counts what is really written: an answer may have many times what it has, and
-- to keep the most of it until the end would keep others from quota that is free. No more than HORIZON is
-- promised at any time: who reserves 16 times too much uses a fraction of the limit. So the share of their
-- bound that answers of the same task had is reserved, and settled when the truth is known: less is given
-- back, more is debt that later claims wait for. The window law of gcra.lua then holds for what was expected,
-- and over time, because of the debt, for what was written.
--
-- The share is an expectile, which errs on the high side: it goes up three times as readily as down. It
-- begins with the whole bound, which counts as one answer among the first 1 / DOWN of them.
local RECENT = 0.05
local LEAST, MOST = 0.5, 2

local UP, DOWN = 0.15, 0.05
local LEAST_OUTPUT = 1 / 64
-- More than so many times what is expected by now was reserved when less was known.
local SURPLUS = 1.1

local function output_field(task)
  return 'output:' .. task
end

local function output_share(state, task)
  return tonumber(state[output_field(task)] or 1)
end

-- The costs of a claim as they are expected of the provider; `real_output`: it counts what is written.
local function expected(state, costs, exact, real_output, task)
  local total, input, output = costs[2], costs[3], costs[4]
  if not exact and state.ratio ~= 1 then input = math.ceil(costs[3] * state.ratio) end
  if real_output then output = math.ceil(costs[4] * output_share(state, task)) end
  if input == costs[3] and output == costs[4] then return costs end
  return { costs[1], total - costs[3] - costs[4] + input + output, input, output }
end

-- What of a refund is given back: not what was reserved beyond what is expected by now, as by all the
-- first. Its time is over, and those after it have theirs already: it would be spent at once, on top of them.
-- The small differences of every day come back whole, as debts are charged whole.
local function refund(state, reserved, changes, task, bound)
  local surplus = reserved[4] - SURPLUS * output_share(state, task) * bound
  local kept = math.min(surplus, -changes[4])
  if kept <= 0 then return end
  changes[2], changes[4] = changes[2] + kept, changes[4] + kept
end

-- Real input tokens per estimated one (0: unknown).
local function learn_ratio(state, ratio)
  local seen = math.max(LEAST, math.min(MOST, ratio))
  set(state, 'ratio', state.ratio + RECENT * (seen - state.ratio))
end

-- Tokens of an answer, and how many it might have had.
local function learn_output(state, task, tokens, bound)
  local seen = math.max(LEAST_OUTPUT, math.min(1, tokens / bound))
  local before = output_share(state, task)
  local weight = seen > before and UP or DOWN
  local answers = tonumber(state['answers:' .. task] or 0)
  if answers < 1 / DOWN then
    set(state, 'answers:' .. task, answers + 1)
    weight = math.max(weight, 1 / (answers + 2))
  end
  set(state, output_field(task), before + weight * (seen - before))
end
