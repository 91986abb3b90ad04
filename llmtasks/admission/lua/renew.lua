-- A leader is alive: its lease begins anew. Also one that has run out, if nobody else leads meanwhile.
--
-- KEYS  flight
-- ARGV  1: the waiter
--       2: what the wake-up channels' names begin with
-- Reply 1 if it leads, 0 if it does not any more

local flight = load_flight(KEYS[1], clock())
local waiter = ARGV[1]
local mine = flight.leaders[waiter]
if not mine and flight.leading > flight.failed then return 0 end
lead(flight, waiter, mine and mine[2] or 0, mine and mine[3] or 1)
return 1
