-- Wake-up calls to processes, see wakes.py. One that nobody hears, or that the server's rules (ACL)
-- forbid, costs time and nothing else.
--
-- ARGV[2] of every script that wakes: what the channels' names begin with.

-- The process of a waiter: a waiter is named `<process id>.<question id>`.
local function process_of(waiter)
  return string.match(waiter, '^[^.]*')
end

-- Wakes what waits under `name` in a process.
local function wake(process, name)
  redis.pcall('PUBLISH', ARGV[2] .. process, name)
end

local function wake_waiter(waiter)
  wake(process_of(waiter), waiter)
end
