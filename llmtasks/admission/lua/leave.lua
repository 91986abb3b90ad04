-- A leader ends without an answer: somebody else may lead. Nothing for one that does not lead.
--
-- KEYS  flight
-- ARGV  1: msgpack [waiter, name of the question, 1 if it ended with an error of its own]
--       2: what the wake-up channels' names begin with
-- Reply 1 if it led, else 0

local waiter, name, failed = unpack(cmsgpack.unpack(ARGV[1]))
local flight = load_flight(KEYS[1], clock())
if not leads(flight, waiter) then return 0 end
flight.failed = flight.failed + failed
part(flight, waiter, name)
return 1
