-- Read how providers stand; changes nothing. Times in seconds, as text.
--
-- KEYS  state, slots and line (three) of each provider
-- ARGV  1: the attempt that asks, or ''
--       2: msgpack of the rates per dimension of each provider
-- Reply per provider: block seconds, why, state name, calls in flight, calls that wait, share of the
--       limits in use, then seconds of quota already promised in each dimension

local attempt = ARGV[1]
local configured = cmsgpack.unpack(ARGV[2])
local time = clock()

local function name_of(state)
  if state.open_until == 0 then return blocked_for(state) > 0 and 'blocked' or 'ok' end
  if state.now >= state.open_until then return 'half-open' end
  return state.disabled == 1 and 'disabled' or 'open'
end

local replies = {}
for index, rates in ipairs(configured) do
  local first_key = 1 + KEYS_EACH * (index - 1)
  local state = load_state(KEYS[first_key], time)
  local slots = KEYS[first_key + 1]
  local seconds, why = obstacle(state, slots, attempt)
  local taken = slots_taken(slots, state.now)
  local waiting = redis.call('ZCARD', line_of(first_key).tags)
  local in_use = string.format('%.6f', share(state) * ramp(state))
  local reply = { string.format('%.6f', seconds), why, name_of(state), taken, waiting, in_use }
  for d, name in ipairs(DIMENSIONS) do
    local ahead = rates[d] > 0 and math.max(0, state[name] - state.now) or 0
    reply[#reply + 1] = string.format('%.6f', ahead)
  end
  replies[index] = reply
end
return replies
