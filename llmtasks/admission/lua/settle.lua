-- Book the outcome of one granted call, once, however often this is replayed. Seconds.
--
-- KEYS  grant, state and slots of its provider
-- ARGV  1: msgpack [attempt, provider, kind, changes and rates per dimension, block seconds, why]
--       kind: succeeded | limited | failed | rejected | disabled | given up | abandoned
-- Reply 1, or 0 when it was settled before

-- A settled grant is remembered until no replay of its settlement can still be under way.
local SETTLED_MARGIN = 60

local attempt, name, kind, changes, rates, wait, why = unpack(cmsgpack.unpack(ARGV[1]))
local granted = redis.call('GET', KEYS[1])
local start, era, settled = 0, -1, false
local _
if granted then _, start, era, _, settled = unpack(cmsgpack.unpack(granted)) end
if settled then return 0 end

local state = load_state(KEYS[2], clock())
-- Without its grant (data loss, or far too late) nothing is given back and the breaker does not
-- hear of it; only what the provider said about the future still counts.
if granted then
  true_up(state, rates, changes)
  judge(state, attempt, era, kind, why)
end
if wait > 0 then block(state, wait, why) end
redis.call('ZREM', KEYS[3], attempt)
if next(state.dirty) then save_state(state) end
local grant = cmsgpack.pack({ name, start, era, KEYS[2], true })
redis.call('SET', KEYS[1], grant, 'EX', SETTLED_MARGIN)
return 1
