-- The second half of settle.lua: somebody waits for the provider, and may perhaps go now. Seconds.

wake_line(provider_of(cmsgpack.unpack(ARGV[3]), 2, time))
return 1
