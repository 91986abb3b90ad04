-- Read how providers stand; changes nothing. Times in seconds, as text.
--
-- KEYS  state and slots of each provider
-- ARGV  1: the attempt that asks, or ''
--       2: msgpack of [rates per dimension, lease] of each provider
-- Reply per provider: block seconds, why, state name, calls in flight, then seconds of quota
--       already promised in each dimension

local attempt = ARGV[1]
local configured = cmsgpack.unpack(ARGV[2])
local time = clock()

local function name_of(state)
  if state.open_until == 0 then return blocked_for(state) > 0 and 'blocked' or 'ok' end
  if state.now >= state.open_until then return 'half-open' end
  return state.disabled == 1 and 'disabled' or 'open'
end

local replies = {}
for index = 1, #KEYS / 2 do
  local state = load_state(KEYS[2 * index - 1], time)
  local rates, lease = unpack(configured[index])
  local seconds, why = obstacle(state, attempt)
  local taken = slots_taken(KEYS[2 * index], state.now, lease)
  local reply = { string.format('%.6f', seconds), why, name_of(state), taken }
  for d, name in ipairs(DIMENSIONS) do
    local ahead = rates[d] > 0 and math.max(0, state[name] - state.now) or 0
    reply[#reply + 1] = string.format('%.6f', ahead)
  end
  replies[index] = reply
end
return replies
