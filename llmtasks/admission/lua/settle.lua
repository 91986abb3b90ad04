-- Book the outcome of one granted call, once, however often this is replayed. Seconds.
--
-- KEYS  grant, state, slots and line (three) of its provider, then the flight if there is an answer
--       to be shared (in another hash slot: on a Redis Cluster it lands by land.lua)
-- ARGV  1: msgpack [attempt, provider, kind, changes and rates per dimension, block seconds, why,
--       waiter, name of the question, input tokens as estimated and counted (0: unknown), share of the
--       configured limit that the provider states per dimension (0: nothing; or none at all), task,
--       bound on the answer (0: what it had is unknown, or the provider counts the bound)]
--       kind: succeeded | limited | failed | rejected | disabled | given up | abandoned
--       2: what the wake-up channels' names begin with
--       3: msgpack of the provider as in admit.lua
-- Reply 1, or 0 when it was settled before

-- A settled grant is remembered until no replay of its settlement can still be under way.
local SETTLED_MARGIN = 60

local attempt, name, kind, changes, rates, wait, why, waiter, question, counted, stated, task,
  bound = unpack(cmsgpack.unpack(ARGV[1]))
local time = clock()
if KEYS[7] then land(load_flight(KEYS[7], time), waiter, question) end
local granted = load_grant(KEYS[1])
if granted and granted.settled then return 0 end

local state = load_state(KEYS[2], time)
-- Without its grant (data loss, or far too late) nothing is given back and the breaker does not
-- hear of it; only what the provider said about the future still counts.
if granted then
  if bound > 0 then
    local tokens = granted.reserved[4] + changes[4]
    refund(state, granted.reserved, changes, task, bound)
    learn_output(state, task, tokens, bound)
  end
  -- What was never sent is given back if nobody was promised anything behind it: those who were keep
  -- their time, and to grant its time to others on top of them would break the law.
  if kind ~= 'abandoned' or state.newest == attempt then
    true_up(state, rates, changes, granted.slower)
  end
  judge(state, attempt, granted.era, kind, why)
  -- The refusal was of the pace before what it states.
  if kind == 'limited' then cut(state, granted.at) end
  if #stated > 0 then hear(state, granted.at, stated) end
end
if counted[1] > 0 then learn_ratio(state, counted[1], counted[2]) end
if wait > 0 then block(state, wait, why) end
redis.call('ZREM', KEYS[3], attempt)
if next(state.dirty) then save_state(state) end
granted = granted or { provider = name, start = 0, state_key = KEYS[2], era = 0, at = 0,
  slower = false, reserved = { 0, 0, 0, 0 }, placed = 0 }
granted.settled = true
save_grant(KEYS[1], granted, SETTLED_MARGIN)
if redis.call('EXISTS', KEYS[4]) == 0 then return 1 end
-- Goes on in next.lua: what only those need who wait costs the others nothing.
