-- What the fleet knows of one provider: one hash. Times are seconds since the epoch on the server's
-- clock, kept with six digits (tostring() of a Lua double would lose the fraction).
--
--   last                               the newest time this state has seen
--   requests, tokens, input, output    TAT of each limited dimension, see gcra.lua
--   credit                             turn of the weighted round robin, see choose.lua
--   blocked, blocked_why               no call before this time: the provider said so
--   failures, openings                 failed calls in a row; openings in a row
--   open_until, open_why, disabled     0: closed; else out until then, after that one probe
--   probe, probe_until                 attempt id of the one probe, and the end of its lease
--   era                                grows whenever the breaker closes
local NUMBERS = {
  'last', 'requests', 'tokens', 'input', 'output', 'credit', 'blocked', 'failures', 'openings',
  'open_until', 'disabled', 'probe_until', 'era',
}
local TEXTS = { 'blocked_why', 'open_why', 'probe' }

-- A state that is further in the future than this was written under another clock. Smaller steps
-- back are waited out (time stands still for the provider), a larger one would silence it for as
-- long; then the state is forgotten as if the server had lost it.
local CLOCK_STEP = 60

local FIELDS = {}
for _, name in ipairs(NUMBERS) do FIELDS[#FIELDS + 1] = name end
for _, name in ipairs(TEXTS) do FIELDS[#FIELDS + 1] = name end

-- Reads a state without changing it. `now` never runs backwards per provider. A missing TAT counts
-- as "used up to now": whatever was granted before a data loss is unknown, so a fresh state starts
-- with the burst tolerance and not with quota saved up while nobody was counting.
local function load_state(key, time)
  local raw = redis.call('HMGET', key, unpack(FIELDS))
  local state = { key = key, now = time, dirty = {} }
  local last = tonumber(raw[1] or nil) or 0
  if last > time + CLOCK_STEP then
    raw = {}
    state.forget = true
  elseif last > time then
    state.now = last
  end
  for i, name in ipairs(NUMBERS) do state[name] = tonumber(raw[i] or nil) or 0 end
  for i, name in ipairs(TEXTS) do state[name] = raw[#NUMBERS + i] or '' end
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
  local changed = {}
  for name in pairs(state.dirty) do
    local value = state[name]
    if type(value) == 'number' then value = string.format('%.6f', value) end
    changed[#changed + 1] = name
    changed[#changed + 1] = value
  end
  redis.call('HSET', state.key, unpack(changed))
end
