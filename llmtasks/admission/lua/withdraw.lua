-- A claim that waits will not ask again: its places go to those behind it. Seconds.
--
-- KEYS  state, slots and line (three) of each provider
-- ARGV  1: msgpack [waiter, providers as in admit.lua]
--       2: what the wake-up channels' names begin with

local waiter, packed = unpack(cmsgpack.unpack(ARGV[1]))
local time = clock()
for index, fields in ipairs(packed) do
  local provider = provider_of(fields, 1 + KEYS_EACH * (index - 1), time)
  give_up_place(line_of(provider.first_key), waiter)
  wake_line(provider)
end
return 1
