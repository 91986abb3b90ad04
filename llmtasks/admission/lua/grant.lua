-- What is remembered of a granted call: for the same claim again, and for its settlement.
--
--   provider, start   where, and when it may begin
--   state_key, era    of the provider, then
--   at                when it was granted
--   slower            by how much longer than at the full pace it was charged (gcra.lua); false: not
--   reserved          units of each dimension
--   placed            1 if it has a place (slots.lua)
--   settled           whether its outcome is booked

local function load_grant(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  local provider, start, state_key, era, at, slower, reserved, placed, settled =
    unpack(cmsgpack.unpack(packed))
  return {
    provider = provider, start = start, state_key = state_key, era = era, at = at, slower = slower,
    reserved = reserved, placed = placed, settled = settled,
  }
end

local function save_grant(key, g, seconds)
  local packed = cmsgpack.pack({
    g.provider, g.start, g.state_key, g.era, g.at, g.slower, g.reserved, g.placed, g.settled,
  })
  redis.call('SET', key, packed, 'EX', seconds)
end
