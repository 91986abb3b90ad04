-- The second half of admit.lua: somebody waits, or the claim itself has to. Seconds.

-- The shortest sensible wait before asking again.
local SHORTEST_WAIT = 0.05
-- How much later than it will probably be a claim's turn it looks by itself: it is woken before, when
-- those before it have really gone elsewhere. Less than HORIZON, so that no quota is lost meanwhile.
local PATIENCE = 2.5

-- Each level of priority of a tenant has a turn of its own: what is urgent must not put the line on to where
-- the tenant's other claims stand.
local claim = {
  waiter = waiter, priority = priority, tenant = priority .. ':' .. tenant, returned = returned,
}

-- Seconds until the claim could go, with those before it in the line served first; 0 for now.
local function turn_in(provider)
  local state, rates = provider.state, provider.rates
  provider.place = place_of(provider.line, claim, provider.costs, rates)
  local those = before(provider.line, state.now, provider.place.tag)
  local surely = promised(state, rates, those.quota) - HORIZON
  if surely > ROUNDING then
    local likely = promised(state, rates, those.likely) - HORIZON
    return math.min(surely, math.max(0, likely) + PATIENCE)
  end
  if slots_free(provider, those.rank) > 0 then return 0 end
  return slot_free_in(provider, those.rank)
end

-- The claim stands in the line of every provider that is not out, until it asks again. What part of it
-- will probably be taken there, and not elsewhere, goes by how fast each would serve it.
local function wait_in_lines(delay)
  local speed = 0
  for _, provider in ipairs(providers) do
    if not provider.out then speed = speed + 1 / provider.place.seconds end
  end
  for _, provider in ipairs(providers) do
    if provider.out then
      give_up_place(provider.line, waiter)
    else
      provider.place.share = 1 / provider.place.seconds / speed
      wait_in(provider.line, waiter, provider.place, provider.state.now + delay)
    end
  end
end

local function leave_lines(chosen)
  for _, provider in ipairs(providers) do
    if provider == chosen then
      served_from(provider.line, waiter, provider.place)
    else
      take_out(provider.line, waiter)
    end
  end
  for _, provider in ipairs(providers) do
    if not provider.out then wake_line(provider) end
  end
end

candidates = {}
local soonest, reason, all_out = math.huge, 'behind others', true
for _, provider in ipairs(providers) do
  provider.line = line_of(provider.first_key)
  if provider.out then
    if provider.out < soonest then
      soonest, reason = provider.out, provider.name .. ': ' .. provider.why
    end
  else
    all_out = false
    local wait = turn_in(provider)
    -- A probe is wanted whoever brings it.
    if provider.start and (wait == 0 or provider.probing) then
      candidates[#candidates + 1] = provider
    else
      soonest = math.min(soonest, wait)
    end
  end
end

if #candidates > 0 then
  local reply, chosen = grant(candidates)
  leave_lines(chosen)
  return reply
end

local delay = math.max(SHORTEST_WAIT, soonest)
if not all_out then reason, delay = 'behind others', math.min(delay, LONGEST_WAIT) end
wait_in_lines(delay)
-- Who is blocked leads nobody: blocks end for all at once.
local leading = flight and (leads(flight, waiter) or not all_out)
if leading then lead(flight, waiter, priority, 0) end
return { 'wait', string.format('%.6f', delay), reason, all_out and 1 or 0, leading and 1 or 0 }
