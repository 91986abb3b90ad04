-- Whether a provider may be called, and what the outcome of a call changes about it. Seconds.
--
-- Closed: TRIP failures in a row open the breaker, for FIRST_OPENING, doubled with every opening
-- that follows without a success between, up to LONGEST_OPENING. `disabled` (key, billing) opens it
-- at once. Afterwards half-open: one probe in the whole fleet, under a lease so that a prober that
-- died does not block the next.
--
-- Late outcomes: calls sent before an opening still come back after it. They must not open it
-- again, lengthen it, or close it. So while open or half-open only the current probe's outcome
-- counts, and while closed only outcomes of calls granted in the present era, which began with the
-- last closing.
local TRIP = 5
local FIRST_OPENING = 30
local LONGEST_OPENING = 300
local DISABLED_FOR = 60
-- Nobody knows when a probe answers; who waits for it asks again after this.
local PROBE_RECHECK = 2
-- A Retry-After beyond a day is a mistake somewhere; ask again then.
local LONGEST_BLOCK = 86400

-- Seconds until the breaker lets `attempt` pass, why, and whether it would pass as the probe.
local function breaker(state, attempt)
  if state.open_until == 0 then return 0, '', false end
  if state.now < state.open_until then
    return state.open_until - state.now, state.open_why, false
  end
  if state.probe ~= '' and state.probe ~= attempt and state.probe_until > state.now then
    return math.min(state.probe_until - state.now, PROBE_RECHECK), 'one call probes it', false
  end
  return 0, '', true
end

-- Seconds of the block the provider asked for.
local function blocked_for(state)
  return math.max(0, state.blocked - state.now)
end

-- Both together: seconds and reason of whichever lasts longer.
local function obstacle(state, attempt)
  local open, why = breaker(state, attempt)
  local blocked = blocked_for(state)
  if blocked > open then return blocked, state.blocked_why end
  return open, why
end

local function take_probe(state, attempt, start, lease)
  set(state, 'probe', attempt)
  set(state, 'probe_until', start + lease)
end

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
  for _, name in ipairs({ 'open_until', 'disabled', 'failures', 'openings' }) do
    set(state, name, 0)
  end
  set(state, 'open_why', '')
  set(state, 'probe', '')
  set(state, 'era', state.era + 1)
end

local function judge_while_closed(state, kind, why)
  if kind == 'succeeded' then
    if state.failures > 0 then set(state, 'failures', 0) end
  elseif kind == 'disabled' then
    open(state, DISABLED_FOR, why, 1)
  elseif kind == 'failed' then
    set(state, 'failures', state.failures + 1)
    if state.failures >= TRIP then trip(state, why) end
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
