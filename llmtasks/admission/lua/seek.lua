-- The first half of a claim on a Redis Cluster, in its question's hash slot: a cached answer, somebody to
-- follow, or the lead. What admit.lua decides then, in the fleet's slot and without these keys, comes too
-- late for this one, so it is not as on a single server in two things:
--   Who leads counts as granted at once: what is urgent does not take over from one that still waits, but
--   follows it.
--   Who leads and is told that all providers are out leaves a note that they are, and leads no more. While
--   the note is there nobody leads before looking whether that still holds: those who followed would lead
--   one after the other, each only to be told the same.
--
-- KEYS  cached answer, flight, note
-- ARGV  1: msgpack [waiter, priority, whether it has looked]
--       2: what the wake-up channels' names begin with
-- Reply hit | follow, delay | look | lead, 1 if it did not lead before

local waiter, priority, looked = unpack(cmsgpack.unpack(ARGV[1]))
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'hit' } end
local flight = load_flight(KEYS[2], clock())
if not may_lead(flight, waiter, priority) then
  return { 'follow', string.format('%.6f', follow(flight, waiter)) }
end
local led = leads(flight, waiter)
if not led and not looked and redis.call('EXISTS', KEYS[3]) == 1 then return { 'look' } end
lead(flight, waiter, priority, 1)
return { 'lead', led and 0 or 1 }
