-- A claim that waits will not ask again: its places go to those behind it. Seconds.
--
-- KEYS  state, slots and line (three) of each provider
-- ARGV  1: msgpack [waiter, providers as in admit.lua]
--       2: what the wake-up channels' names begin with

local waiter, packed = unpack(cmsgpack.unpack(ARGV[1]))
local time = clock()
for index, fields in ipairs(packed) do
  local _, _, _, _, rates, concurrency = unpack(fields)
  local first_key = 5 * index - 4
  local line = line_of(first_key + 2)
  give_up_place(line, waiter)
  wake_line({
    state = load_state(KEYS[first_key], time), rates = rates, concurrency = concurrency,
    slots = KEYS[first_key + 1], line = line,
  })
end
return 1
