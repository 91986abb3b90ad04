-- What the outcome of a call changes about its provider. Seconds.
--
-- TRIP failures in a row, or more than TRIP_SHARE of the calls of late, open the breaker for
-- FIRST_OPENING, doubled with every opening that follows without a success between, up to
-- LONGEST_OPENING. `disabled` (key, billing) opens it at once. Afterwards one call probes it.
--
-- Late outcomes: calls sent before an opening still come back after it. They must not open it
-- again, lengthen it, or close it. So while open or half-open only the current probe's outcome
-- counts, and while closed only outcomes of calls granted in the present era, which began with the
-- last closing.
local TRIP = 5
-- The share is a moving average over about 1 / RECENCY calls, and known after KNOWN of them.
local TRIP_SHARE = 0.5
local RECENCY = 0.1
local KNOWN = 20
-- A share as small as this is none: a provider in health needs no bookkeeping.
local NO_SHARE = 0.01
local FIRST_OPENING = 30
local LONGEST_OPENING = 300
local DISABLED_FOR = 60
-- A Retry-After beyond a day is a mistake somewhere; ask again then.
local LONGEST_BLOCK = 86400

-- The latest deadline wins; a shorter wait never shortens a longer one.
local function block(state, seconds, why)
  local deadline = state.now + math.min(seconds, LONGEST_BLOCK)
  if deadline > state.blocked then
    set(state, 'blocked', deadline)
    set(state, 'blocked_why', why)
  end
end

local function open(state, seconds, why, disabled)
  set(state, 'open_until', state.now + seconds)
  set(state, 'open_why', why)
  set(state, 'disabled', disabled)
  set(state, 'failures', 0)
  set(state, 'probe', '')
end

local function trip(state, why)
  local doubled = FIRST_OPENING * 2 ^ math.min(state.openings, 10)
  set(state, 'openings', state.openings + 1)
  open(state, math.min(doubled, LONGEST_OPENING), why, 0)
end

local function close(state)
  for _, name in ipairs({ 'open_until', 'disabled', 'failures', 'openings', 'failing', 'outcomes' })
  do
    set(state, name, 0)
  end
  set(state, 'open_why', '')
  set(state, 'probe', '')
  set(state, 'era', state.era + 1)
  set(state, 'closed_at', state.now)
end

local function count_call(state, failed)
  if state.outcomes < KNOWN then set(state, 'outcomes', state.outcomes + 1) end
  if failed == 0 and state.failing == 0 then return end
  local share_failing = state.failing + RECENCY * (failed - state.failing)
  set(state, 'failing', share_failing > NO_SHARE and share_failing or 0)
end

local function judge_while_closed(state, kind, why)
  if kind == 'succeeded' then
    if state.failures > 0 then set(state, 'failures', 0) end
    count_call(state, 0)
  elseif kind == 'disabled' then
    open(state, DISABLED_FOR, why, 1)
  elseif kind == 'failed' then
    set(state, 'failures', state.failures + 1)
    count_call(state, 1)
    local often = state.outcomes >= KNOWN and state.failing > TRIP_SHARE
    if state.failures >= TRIP or often then trip(state, why) end
  end
end

-- A rejected request is an answer too: the provider is alive. One that was rate limited, given up
-- or never sent has told nothing; the next call probes.
local function judge_probe(state, kind, why)
  if kind == 'succeeded' or kind == 'rejected' then
    close(state)
  elseif kind == 'failed' then
    trip(state, why)
  elseif kind == 'disabled' then
    open(state, DISABLED_FOR, why, 1)
  else
    set(state, 'probe', '')
  end
end

local function judge(state, attempt, era, kind, why)
  if state.open_until ~= 0 then
    if state.probe == attempt then judge_probe(state, kind, why) end
  elseif era == state.era then
    judge_while_closed(state, kind, why)
  end
end

-- A call granted at `granted` was told limits: `stated[d]` as a share of the configured one, 0 if nothing
-- was said of it. One that states what is configured, as nearly all do, costs no bookkeeping.
local function hear(state, granted, stated)
  if granted < state.stated_at then return end
  local known, news, less, heard = limits_stated(state), false, false, {}
  for d, name in ipairs(STATED) do
    local before = known and tonumber(state[name]) or 1
    heard[d] = stated[d] > 0 and stated[d] or before
    news, less = news or heard[d] < 1 or before < 1, less or heard[d] < before
  end
  if not news then return end
  for d, name in ipairs(STATED) do set(state, name, heard[d]) end
  if less then set(state, 'slowed_at', state.now) end
  set(state, 'stated_at', granted)
end
