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
local granted = redis.call('GET', KEYS[1])
local start, era, at, slower, reserved, settled = 0, -1, 0, false, 0, false
local _
if granted then _, start, era, _, at, slower, reserved, settled = unpack(cmsgpack.unpack(granted)) end
if settled then return 0 end

local state = load_state(KEYS[2], time)
-- Without its grant (data loss, or far too late) nothing is given back and the breaker does not
-- hear of it; only what the provider said about the future still counts.
if granted then
  if bound > 0 then
    local tokens = reserved[4] + changes[4]
    refund(state, reserved, changes, task, bound)
    learn_output(state, task, tokens, bound)
  end
  true_up(state, rates, changes, slower)
  judge(state, attempt, era, kind, why)
  -- The refusal was of the pace before what it states.
  if kind == 'limited' then cut(state, at) end
  if #stated > 0 then hear(state, at, stated) end
end
if counted[1] > 0 then learn_ratio(state, counted[1], counted[2]) end
if wait > 0 then block(state, wait, why) end
redis.call('ZREM', KEYS[3], attempt)
if next(state.dirty) then save_state(state) end
local grant = cmsgpack.pack({ name, start, era, KEYS[2], at, slower, reserved, true })
redis.call('SET', KEYS[1], grant, 'EX', SETTLED_MARGIN)
if redis.call('EXISTS', KEYS[4]) == 0 then return 1 end
-- Goes on in next.lua: what only those need who wait costs the others nothing.
