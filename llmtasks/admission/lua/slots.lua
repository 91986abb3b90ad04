-- Calls in flight of one provider: a sorted set of attempt ids, scored by when their lease ends
-- (seconds since the epoch). A crashed holder's slot comes back by itself.
-- (An end that no lease of now can have was written under another clock, and counts for nothing.)
local function slots_taken(key, now, lease)
  local latest = string.format('%.6f', now + lease + CLOCK_STEP)
  return redis.call('ZCOUNT', key, string.format('(%.6f', now), latest)
end

-- Slots that are free for one behind `rank` others. A provider that comes back is used at its pace.
local function slots_free(provider, rank)
  if provider.concurrency == 0 then return math.huge end
  local state = provider.state
  local usable = math.max(1, math.floor(provider.concurrency * ramp(state)))
  return usable - slots_taken(provider.slots, state.now, provider.lease) - rank
end

local function take_slot(key, attempt, now, start, lease)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now))
  redis.call('ZADD', key, string.format('%.6f', start + lease), attempt)
end
