-- Calls in flight of one provider: a sorted set of attempt ids, scored by when their lease ends (seconds
-- since the epoch). The process of a call renews it (hold.lua); what a dead one held is free soon after.
--
-- Only calls that are counted have a place: those of a provider with a limit of calls in flight, and probes.
local SLOT_LEASE = 15

-- (An end that no lease of now can have was written under another clock, and counts for nothing.)
local function slots_taken(key, now)
  local latest = string.format('%.6f', now + HORIZON + SLOT_LEASE + CLOCK_STEP)
  return redis.call('ZCOUNT', key, string.format('(%.6f', now), latest)
end

-- Slots that are free for one behind `rank` others. A provider that comes back is used at its pace, and
-- not at all while calls may be under way that are not known any more.
local function slots_free(provider, rank)
  if provider.concurrency == 0 then return math.huge end
  local state = provider.state
  if state.now < state.unknown_until then return 0 end
  local usable = math.max(1, math.floor(provider.concurrency * ramp(state)))
  return usable - slots_taken(provider.slots, state.now) - rank
end

local function hold_slot(key, attempt, start)
  redis.call('ZADD', key, string.format('%.6f', start + SLOT_LEASE), attempt)
end

local function take_slot(key, attempt, now, start)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now))
  hold_slot(key, attempt, start)
end

-- When one behind `rank` others looks for a slot by itself, seconds. Who gives one back wakes the next: this is
-- for holders that died, and for a next one whose process hangs.
local LONGEST_LOOK = 60
local function slot_free_in(provider, rank)
  local state = provider.state
  local now = state.now
  if now < state.unknown_until then return state.unknown_until - now end
  local first = redis.call('ZRANGEBYSCORE', provider.slots, string.format('(%.6f', now), '+inf',
    'WITHSCORES', 'LIMIT', 0, 1)
  local ends = math.min(SLOT_LEASE, tonumber(first[2] or now) - now)
  return math.min(LONGEST_LOOK, ends + SLOT_LEASE * math.floor(rank / provider.concurrency))
end

-- When the lease of a call ends; 0 if it has none.
local function held_until(key, attempt)
  return tonumber(redis.call('ZSCORE', key, attempt) or 0)
end
