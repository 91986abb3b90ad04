-- Decide one claim: a cached answer, somebody to follow, a reserved place at a provider, or a wait.
-- One atomic step; a refusal reserves nothing. Times in seconds; replies carry them as text, since
-- Redis cuts numbers.
--
-- KEYS  grant, then state, slots and line (three) of each provider, then the cached answer and the
--       flight if there may be any. These two lie in another hash slot than the rest: on a Redis
--       Cluster they are asked before, by seek.lua, and left out here.
-- ARGV  1: msgpack [attempt, [requests, tokens, input, output], providers, cacheable, waiter,
--       priority, tenant, returned, exact, births, task], a provider being [name, weight, tried,
--       burst, rates per dimension, concurrency (0: any), seconds a call may last, whether it counts
--       real output]; births as in loss.lua
--       2: what the wake-up channels' names begin with
-- Reply hit | follow, delay |
--       go, provider, delay, reserved input and output tokens, birth, has a place, leads |
--       wait, delay, reason, 1 if nothing but blocks stands in the way, leads
--       (leads: 1 if others follow this claim's waiter)

-- An unsettled grant is remembered until its call must have ended and every replay of it too.
local GRANT_MARGIN = 60

local attempt, costs, packed, cacheable, waiter, priority, tenant, returned, exact, births, task =
  unpack(cmsgpack.unpack(ARGV[1]))

local granted = load_grant(KEYS[1])
if not granted and cacheable and redis.call('EXISTS', KEYS[#KEYS - 1]) == 1 then
  return { 'hit' }
end
local time = clock()
local flight = cacheable and load_flight(KEYS[#KEYS], time) or nil

local function reply_go(g, state)
  local delay = string.format('%.6f', math.max(0, g.start - state.now))
  local leading = flight and leads(flight, waiter) and 1 or 0
  return { 'go', g.provider, delay, g.reserved[3], g.reserved[4], state.born, g.placed, leading }
end

-- The same claim again: its answer was lost on the way. Same grant, charged once.
if granted then return reply_go(granted, load_state(granted.state_key, time)) end
if flight and not may_lead(flight, waiter, priority) then
  return { 'follow', string.format('%.6f', follow(flight, waiter)) }
end

-- When the claim would start at the provider, if it were granted now.
local function plan(provider)
  local state = provider.state
  provider.lengths = lengths_of(state, provider.rates, provider.costs)
  provider.start = earliest(state, provider.rates, provider.lengths, provider.burst)
  provider.delay = provider.start - state.now
end

-- Reserves a place at the one of the candidates whose turn it is; the reply, and where it is.
local function grant(candidates)
  local competing = competitors(candidates)
  local chosen = take_turn(competing)
  local state = chosen.state
  reserve(state, chosen.rates, chosen.lengths, chosen.start)
  set(state, 'newest', attempt)
  local placed = chosen.probing or chosen.concurrency > 0
  if chosen.probing then set(state, 'probe', attempt) end
  if placed then take_slot(chosen.slots, attempt, state.now, chosen.start) end
  for _, candidate in ipairs(competing) do save_state(candidate.state) end
  local granted = {
    provider = chosen.name, start = chosen.start, state_key = state.key, era = state.era,
    at = state.now, slower = slowness(state, chosen.rates, chosen.costs, chosen.lengths),
    reserved = chosen.costs, placed = placed and 1 or 0, settled = false,
  }
  save_grant(KEYS[1], granted, math.ceil(HORIZON + chosen.lasting + GRANT_MARGIN))
  if flight then lead(flight, waiter, priority, 1) end
  return reply_go(granted, state), chosen
end

-- Each provider is out, or promises too much already (`full`), or the claim could go.
local providers, candidates, tags = {}, {}, {}
for index, fields in ipairs(packed) do
  local provider = provider_of(fields, 2 + KEYS_EACH * (index - 1), time)
  local state = provider.state
  notice_loss(state, births[index])
  local open, _, probing = breaker(state, provider.slots, attempt)
  if open > 0 or blocked_for(state) > HORIZON then
    provider.out, provider.why = obstacle(state, provider.slots, attempt)
  else
    provider.probing = probing
    provider.costs = expected(state, costs, exact, provider.real_output, task)
    provider.full = promised(state, provider.rates) > HORIZON + ROUNDING
    if not provider.full and slots_free(provider, 0) > 0 then
      plan(provider)
      candidates[#candidates + 1] = provider
    end
  end
  providers[index], tags[index] = provider, KEYS[provider.first_key + 2]
end

local somebody_waits = redis.call('EXISTS', unpack(tags)) > 0
if #candidates > 0 and not somebody_waits then return (grant(candidates)) end
-- Goes on in queue.lua: what only those need who wait costs the others nothing.
