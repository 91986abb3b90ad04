-- Decide one claim: a cached answer, a reserved place at a provider, or a wait. One atomic step; a
-- refusal writes nothing. Times in seconds; replies carry them as text, since Redis cuts numbers.
--
-- KEYS  grant, then state and slots of each provider, then the cached answer if there may be one.
--       The cache key lies in another hash slot than the rest: on a Redis Cluster it has to be read
--       before, by a call of its own, and left out here.
-- ARGV  1: msgpack [attempt, [requests, tokens, input, output], providers, cacheable], a provider
--       being [name, weight, tried, burst, rates per dimension, concurrency (0: any), lease]
-- Reply hit | go, provider, delay | wait, delay, reason, 1 if nothing but blocks stands in the way

-- Quota is promised at most this far ahead; who comes later asks again. Longer would let a block or
-- a crash invalidate many promises at once.
local HORIZON = 5
-- The shortest sensible wait before asking again, and the one for a slot, whose time nobody knows.
local SHORTEST_WAIT = 0.05
local SLOT_RECHECK = 0.25
-- An unsettled grant is remembered until its call must have ended and every replay of it too.
local GRANT_MARGIN = 60

local attempt, costs, packed, cacheable = unpack(cmsgpack.unpack(ARGV[1]))

local function reply_go(name, start, now)
  return { 'go', name, string.format('%.6f', math.max(0, start - now)) }
end

-- The same claim again: its answer was lost on the way. Same grant, charged once.
local granted = redis.call('GET', KEYS[1])
if granted then
  local name, start, _, state_key = unpack(cmsgpack.unpack(granted))
  return reply_go(name, start, load_state(state_key, clock()).now)
end
if cacheable and redis.call('EXISTS', KEYS[#KEYS]) == 1 then return { 'hit' } end

local function provider_of(fields, index)
  local name, weight, tried, burst, rates, concurrency, lease = unpack(fields)
  return {
    name = name, weight = weight, tried = tried, burst = burst, rates = rates,
    concurrency = concurrency, lease = lease, slots = KEYS[2 * index + 1],
  }
end

-- A candidate with its delay; or nil, how long it cannot go, why, and whether a block is the cause.
local function consider(provider, state)
  local open, _, probing = breaker(state, attempt)
  if open > 0 or blocked_for(state) > HORIZON then
    local seconds, why = obstacle(state, attempt)
    return nil, seconds, provider.name .. ': ' .. why, true
  end
  local ahead = promised(state, provider.rates)
  if ahead > HORIZON then return nil, ahead - HORIZON, 'behind others', false end
  if provider.concurrency > 0 then
    local taken = slots_taken(provider.slots, state.now, provider.lease)
    if taken >= provider.concurrency then return nil, SLOT_RECHECK, 'behind others', false end
  end
  local start = earliest(state, provider.rates, costs, provider.burst)
  return {
    provider = provider, state = state, start = start, delay = start - state.now, probing = probing,
  }
end

local time = clock()
local candidates = {}
local soonest, reason, all_blocked = math.huge, '', true
for index, fields in ipairs(packed) do
  local provider = provider_of(fields, index)
  local state = load_state(KEYS[2 * index], time)
  local candidate, seconds, why, blocked = consider(provider, state)
  if candidate then
    candidates[#candidates + 1] = candidate
  else
    if not blocked then all_blocked = false end
    if seconds < soonest then soonest, reason = seconds, why end
  end
end

if #candidates == 0 then
  if not all_blocked then reason = 'behind others' end
  local delay = string.format('%.6f', math.max(soonest, SHORTEST_WAIT))
  return { 'wait', delay, reason, all_blocked and 1 or 0 }
end

local competing = competitors(candidates)
local chosen = take_turn(competing)
local provider, state = chosen.provider, chosen.state
reserve(state, provider.rates, costs, chosen.start)
if chosen.probing then take_probe(state, attempt, chosen.start, provider.lease) end
if provider.concurrency > 0 then
  take_slot(provider.slots, attempt, state.now, chosen.start, provider.lease)
end
for _, candidate in ipairs(competing) do save_state(candidate.state) end
local grant = cmsgpack.pack({ provider.name, chosen.start, state.era, state.key })
redis.call('SET', KEYS[1], grant, 'EX', math.ceil(HORIZON + provider.lease + GRANT_MARGIN))
return reply_go(provider.name, chosen.start, state.now)
