-- Calls in flight of one provider: a sorted set of attempt ids, scored by when their lease ends
-- (seconds since the epoch). A crashed holder's slot comes back by itself.
-- (An end that no lease of now can have was written under another clock, and counts for nothing.)
local function slots_taken(key, now, lease)
  local latest = string.format('%.6f', now + lease + CLOCK_STEP)
  return redis.call('ZCOUNT', key, string.format('(%.6f', now), latest)
end

local function take_slot(key, attempt, now, start, lease)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now))
  redis.call('ZADD', key, string.format('%.6f', start + lease), attempt)
end
