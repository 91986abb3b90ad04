-- Whether a provider may be called. Seconds.
--
-- Its breaker is closed, or open for a time, and afterwards half-open: one probe in the whole fleet,
-- which holds a place (slots.lua), so that a prober that died does not block the next for long. What
-- opens and closes it stands in outcome.lua.

-- Nobody knows when a probe answers; who waits for it asks again after this.
local PROBE_RECHECK = 2

-- Seconds until the breaker lets `attempt` pass, why, and whether it would pass as the probe.
local function breaker(state, slots, attempt)
  if state.open_until == 0 then return 0, '', false end
  if state.now < state.open_until then
    return state.open_until - state.now, state.open_why, false
  end
  if state.probe ~= '' and state.probe ~= attempt then
    local left = held_until(slots, state.probe) - state.now
    if left > 0 then return math.min(left, PROBE_RECHECK), 'one call probes it', false end
  end
  return 0, '', true
end

-- Seconds of the block the provider asked for.
local function blocked_for(state)
  return math.max(0, state.blocked - state.now)
end

-- Both together: seconds and reason of whichever lasts longer.
local function obstacle(state, slots, attempt)
  local open, why = breaker(state, slots, attempt)
  local blocked = blocked_for(state)
  if blocked > open then return blocked, state.blocked_why end
  return open, why
end
