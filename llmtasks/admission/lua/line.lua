-- Who waits for one provider, and in which order. Seconds; those of quota are at the full pace.
--
-- A claim may take a grant if the provider's promises, and what those before it in the line will
-- take, end within HORIZON. So the order is kept to within HORIZON, what a large call needs is held
-- for it, and one that does not come stands in nobody's way: it counts for what it would take, and
-- only until a moment after it should have asked again. Who waits is told when that will be, if
-- nothing changes; if it can go earlier it is woken.
--
--   tags     sorted set: waiter -> tag, the least is first
--   waiters  hash: waiter -> its place, packed
--   tenants  sorted set: tenant -> where its next claim starts; '' -> where the line has got to
-- All three end with the last waiter.
--
-- Order is start-time fair queueing (Goyal, Vin, Cheng 1996) by tenant: a claim starts where its
-- tenant's last one ended, but not behind what the line has got to; its tag is that start, in seconds
-- of quota, less AGEING for every level of priority.
local AGEING = 600

-- Places that are looked at one by one; what is behind them counts as their average.
local SCANNED = 64
-- Waiters woken by one call at the most.
local WOKEN = 8
-- Who is later than this is not waited for; who is later than KEPT has lost its place.
local LATE = 1
local KEPT = 5
-- The longest wait before asking again, if only to say that one is there.
local LONGEST_WAIT = 300
-- Timers that end so soon need no wake-up call.
local SOON = 0.05
-- Where nothing is limited but calls in flight, each counts the same.
local SECONDS_OF_SLOT = 1
-- Equals go by arrival: every entry moves the line by so much.
local TICK = 1e-6

local function line_of(first_key)
  return { tags = KEYS[first_key + 2], waiters = KEYS[first_key + 3], tenants = KEYS[first_key + 4] }
end

local function pack_place(place)
  local q = place.quota
  return cmsgpack.pack({
    place.start, place.due, place.lease, place.share, place.seconds, place.tenant,
    q[1], q[2], q[3], q[4],
  })
end

local function unpack_place(packed)
  local start, due, lease, share_here, seconds, tenant, a, b, c, d = unpack(cmsgpack.unpack(packed))
  return {
    start = start, due = due, lease = lease, share = share_here, seconds = seconds,
    tenant = tenant, quota = { a, b, c, d }, known = true,
  }
end

local function score(line, name)
  return tonumber(redis.call('ZSCORE', line.tenants, name) or 0)
end

-- The place a claim has, or the one it would get. A claim that gave back its last grant unused was
-- charged for it and had its turn: it starts where the line has got to, as if it had just been served.
local function place_of(line, claim, costs, rates)
  local packed = redis.call('HGET', line.waiters, claim.waiter)
  local place = packed and unpack_place(packed)
  if not place then
    local quota, seconds = {}, 0
    for d = 1, #DIMENSIONS do
      quota[d] = costs[d] * rates[d]
      seconds = math.max(seconds, quota[d])
    end
    if seconds == 0 then seconds = SECONDS_OF_SLOT end
    local start = score(line, '')
    if claim.returned then start = start - seconds
    else start = math.max(start, score(line, ':' .. claim.tenant)) end
    place = {
      start = start, seconds = seconds, quota = quota, tenant = claim.tenant, share = 1,
      charged = claim.returned,
    }
  end
  place.tag = place.start - claim.priority * AGEING
  return place
end

-- Charges the tenant for a claim that has just come: for the part that will probably be taken here.
local function charge(line, place)
  if place.known or place.charged then return end
  redis.call('ZADD', line.tenants, place.start + place.seconds * place.share, ':' .. place.tenant)
end

-- Forgets the line if nobody is left, and else the tenants that are behind what it has got to.
local function tidy(line, got_to)
  if redis.call('EXISTS', line.tags) == 0 then
    redis.call('DEL', line.tenants)
  elseif got_to then
    redis.call('ZADD', line.tenants, got_to, '')
    redis.call('ZREMRANGEBYSCORE', line.tenants, '-inf', string.format('(%.17g', got_to))
  end
end

local function take_out(line, waiter)
  redis.call('ZREM', line.tags, waiter)
  redis.call('HDEL', line.waiters, waiter)
  tidy(line)
end

-- Takes a waiter out that was served nowhere; its tenant's next ones need not wait for it.
local function give_up_place(line, waiter, packed)
  packed = packed or redis.call('HGET', line.waiters, waiter)
  if packed then
    local place = unpack_place(packed)
    local tenant = ':' .. place.tenant
    local next_start = redis.call('ZSCORE', line.tenants, tenant)
    if next_start then
      redis.call('ZADD', line.tenants, next_start - place.seconds * place.share, tenant)
    end
  end
  take_out(line, waiter)
end

-- The places before `tag`, from the one at `first` on, `count` at most, and whether there may be more. Those
-- whose lease has ended are taken out. (A lease that is longer than any was written under another clock.)
local function places_before(line, now, tag, first, count)
  local waiters = redis.call('ZRANGEBYSCORE', line.tags, '-inf', tag, 'LIMIT', first, count)
  if #waiters == 0 then return {}, false end
  local packed = redis.call('HMGET', line.waiters, unpack(waiters))
  local places = {}
  for i, waiter in ipairs(waiters) do
    local place = packed[i] and unpack_place(packed[i])
    if not place or place.lease <= now or place.lease > now + LONGEST_WAIT + KEPT + CLOCK_STEP then
      give_up_place(line, waiter, packed[i])
    else
      place.waiter = waiter
      places[#places + 1] = place
    end
  end
  return places, #waiters == count
end

-- What is before a tag: seconds of quota in each dimension, how much of them will probably be taken
-- here and not at another provider, and how many waiters.
local function before(line, now, tag)
  local quota, likely, rank = { 0, 0, 0, 0 }, { 0, 0, 0, 0 }, 0
  local below = string.format('(%.17g', tag)
  local places, more = places_before(line, now, below, 0, SCANNED)
  if more and #places == 0 then return before(line, now, tag) end  -- all of them were taken out
  for _, place in ipairs(places) do
    if place.due + LATE > now then
      rank = rank + 1
      for d = 1, #DIMENSIONS do
        quota[d] = quota[d] + place.quota[d]
        likely[d] = likely[d] + place.quota[d] * place.share
      end
    end
  end
  if not more then return { quota = quota, likely = likely, rank = rank } end
  -- Those behind take as much as those in front, and are all there.
  local behind = redis.call('ZCOUNT', line.tags, '-inf', below) - #places
  for d = 1, #DIMENSIONS do
    local mean, share_of = 0, 1
    for _, place in ipairs(places) do mean = mean + place.quota[d] / #places end
    if quota[d] > 0 then share_of = likely[d] / quota[d] end
    quota[d], likely[d] = quota[d] + behind * mean, likely[d] + behind * mean * share_of
  end
  return { quota = quota, likely = likely, rank = rank + behind }
end

-- Takes a place, or keeps it, until a while after `due`, when the claim will ask again.
local function wait_in(line, waiter, place, due)
  charge(line, place)
  place.due, place.lease = due, due + KEPT
  redis.call('HSET', line.waiters, waiter, pack_place(place))
  if not place.known then
    local first = redis.call('EXISTS', line.tags) == 0
    redis.call('ZADD', line.tags, place.tag, waiter)
    redis.call('ZADD', line.tenants, (first and place.start or score(line, '')) + TICK, '')
  end
  for _, key in pairs(line) do redis.call('EXPIRE', key, 2 * LONGEST_WAIT) end
end

-- Whoever has this place has been granted a call here.
--
-- The line has then got to its start at least, and on by its share of a turn: among tenants that all come
-- but once nobody's start would ever be later, none could be forgotten, and who comes again never served.
local function served_from(line, waiter, place)
  charge(line, place)
  local turn = place.seconds / math.max(1, redis.call('ZCARD', line.tags))
  if place.known then
    redis.call('ZREM', line.tags, waiter)
    redis.call('HDEL', line.waiters, waiter)
  end
  tidy(line, math.max(score(line, '') + turn, place.start))
end

-- Wakes those who could go now and do not know it. One whose process has gone is late from now on: it would
-- keep those behind it waiting for nothing.
local function wake_line(provider)
  local line, state = line_of(provider.first_key), provider.state
  local now = state.now
  local quota, rank, first = { 0, 0, 0, 0 }, 0, 0
  local function wake_some(places)
    for _, place in ipairs(places) do
      if place.due + LATE > now then
        if promised(state, provider.rates, quota) > HORIZON + ROUNDING then return false end
        if slots_free(provider, rank) <= 0 then return false end
        local there = true
        if place.due > now + SOON then
          there = wake_waiter(place.waiter)
          place.due = there and now or now - LATE
          redis.call('HSET', line.waiters, place.waiter, pack_place(place))
        end
        if there then
          rank = rank + 1
          for d = 1, #DIMENSIONS do quota[d] = quota[d] + place.quota[d] end
        end
      end
    end
    return rank < WOKEN
  end
  local places, more
  repeat
    places, more = places_before(line, now, '+inf', first, WOKEN)
    first = first + #places
  until not wake_some(places) or not more or first >= SCANNED
end
