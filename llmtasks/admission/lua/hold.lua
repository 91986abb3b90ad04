-- The process of a call is alive: the call's lease begins anew, also if it has run out meanwhile.
--
-- KEYS  state and slots of the provider
-- ARGV  1: the attempt
-- Reply 1

local now = load_state(KEYS[1], clock()).now
hold_slot(KEYS[2], ARGV[1], now)
return 1
