-- The second half of settle.lua: somebody waits for the provider, and may perhaps go now. Seconds.

local _, _, _, _, _, concurrency = unpack(cmsgpack.unpack(ARGV[3]))
wake_line({
  state = state, rates = rates, concurrency = concurrency, slots = KEYS[3], line = line_of(4),
})
return 1
