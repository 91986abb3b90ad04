-- What the fleet knows of one provider: one hash. Times are seconds since the epoch on the server's
-- clock, kept with six digits (tostring() of a Lua double would lose the fraction). A field that is
-- missing has the value it has here.
local function blank(key, now)
  return {
    key = key, now = now, dirty = {},
    last = 0,                                       -- the newest time this state has seen
    requests = 0, tokens = 0, input = 0, output = 0, -- TAT of each limited dimension, see gcra.lua
    credit = 0,                                     -- turn of the round robin, see choose.lua
    blocked = 0, blocked_why = '',                  -- no call before this time: the provider said so
    failures = 0, openings = 0,                     -- failed calls in a row; openings in a row
    failing = 0, outcomes = 0,                      -- share of calls that fail; calls it is known from
    open_until = 0, open_why = '', disabled = 0,    -- 0: closed; else out until then, then one probe
    probe = '',                                     -- attempt id of the one probe, see slots.lua
    newest = '',                                    -- attempt id of the last grant
    era = 0, closed_at = 0,                         -- grows whenever the breaker closes; when it did
    peak = 0, cut_at = 0,                           -- share of the limit when it was cut, see pace.lua
    stated_at = 0, slowed_at = 0,                   -- when it last stated limits, and lower ones; then also
    -- 'stated_<dimension>', share of the configured limit, see pace.lua
    estimated = 0, counted = 0,                     -- input tokens of late, see learned.lua
    born = '', unknown_until = 0,                   -- when it was first written; see loss.lua
    -- and by task, see expected.lua: 'output:<task>' is the share of its bound that an answer has, known
    -- from 'answers:<task>'
  }
end

-- A state that is further in the future than this was written under another clock. Smaller steps
-- back are waited out (time stands still for the provider), a larger one would silence it for as
-- long; then the state is forgotten as if the server had lost it.
local CLOCK_STEP = 60

-- Reads a state without changing it. `now` never runs backwards per provider. A missing TAT counts
-- as "used up to now": whatever was granted before a data loss is unknown, so a fresh state starts
-- with the burst tolerance and not with quota saved up while nobody was counting.
local function load_state(key, time)
  local state = blank(key, time)
  local raw = redis.call('HGETALL', key)
  for i = 1, #raw, 2 do
    local name = raw[i]
    state[name] = type(state[name]) == 'number' and tonumber(raw[i + 1]) or raw[i + 1]
  end
  if state.last > time + CLOCK_STEP then
    state = blank(key, time)
    state.forget = true
  elseif state.last > time then
    state.now = state.last
  end
  return state
end

local function set(state, name, value)
  state[name] = value
  state.dirty[name] = true
end

local function save_state(state)
  if state.forget then
    redis.call('DEL', state.key)
    state.forget = nil
  end
  set(state, 'last', state.now)
  if state.born == '' then set(state, 'born', string.format('%.6f', state.now)) end
  local changed = {}
  for name in pairs(state.dirty) do
    local value = state[name]
    if type(value) == 'number' then value = string.format('%.6f', value) end
    changed[#changed + 1] = name
    changed[#changed + 1] = value
  end
  redis.call('HSET', state.key, unpack(changed))
end
