-- One provider of a call: its settings, which the worker sends with every call, and how it stands.
--
-- Its keys, one after the other: state, slots, and the three of its line.
local KEYS_EACH = 5

local function provider_of(fields, first_key, time)
  local name, weight, tried, burst, rates, concurrency, lasting, real_output = unpack(fields)
  return {
    name = name, weight = weight, tried = tried, burst = burst, rates = rates,
    concurrency = concurrency, lasting = lasting, real_output = real_output,
    first_key = first_key, state = load_state(KEYS[first_key], time), slots = KEYS[first_key + 1],
  }
end
