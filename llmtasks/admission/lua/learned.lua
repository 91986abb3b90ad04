-- What calls teach about those after them, see expected.lua. Tokens.
--
-- Real input per estimated one: of about the last 1 / RECENT estimates together, so that the large ones weigh
-- what they take. It begins as if FIRST estimates like the first had been right; each counts within bounds.
local RECENT = 0.01
local FIRST = 20
local LEAST, MOST = 0.5, 2

-- The share of its bound that an answer has: an expectile, which errs on the high side: it goes up three
-- times as readily as down. It begins with the whole bound, which counts as one answer among the first
-- 1 / DOWN of them.
local UP, DOWN = 0.15, 0.05
local LEAST_OUTPUT = 1 / 64
-- More than so many times what is expected by now was reserved when less was known.
local SURPLUS = 1.1

-- What of a refund is given back: not what was reserved beyond what is expected by now, as by all the
-- first. Its time is over, and those after it have theirs already: it would be spent at once, on top of them.
-- The small differences of every day come back whole, as debts are charged whole.
local function refund(state, reserved, changes, task, bound)
  local surplus = reserved[4] - SURPLUS * output_share(state, task) * bound
  local kept = math.min(surplus, -changes[4])
  if kept <= 0 then return end
  changes[2], changes[4] = changes[2] + kept, changes[4] + kept
end

-- Input tokens as they were estimated and counted.
local function learn_ratio(state, estimated, counted)
  local seen = math.max(LEAST * estimated, math.min(MOST * estimated, counted))
  if state.estimated == 0 then state.estimated, state.counted = FIRST * estimated, FIRST * estimated end
  set(state, 'estimated', (1 - RECENT) * state.estimated + estimated)
  set(state, 'counted', (1 - RECENT) * state.counted + seen)
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
