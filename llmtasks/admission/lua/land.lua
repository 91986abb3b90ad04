-- The second half of a settlement on a Redis Cluster, in the question's hash slot: there is an answer.
--
-- KEYS  flight
-- ARGV  1: msgpack [waiter, name of the question]
--       2: what the wake-up channels' names begin with
-- Reply 1

local waiter, name = unpack(cmsgpack.unpack(ARGV[1]))
land(load_flight(KEYS[1], clock()), waiter, name)
return 1
