-- Wake-up calls to processes, see wakes.py. One that nobody hears, or that the server's rules (ACL)
-- forbid, costs time and nothing else.
--
-- ARGV[2] of every script that wakes: what the channels' names begin with.

-- The process of a waiter: a waiter is named `<process id>.<question id>`.
local function process_of(waiter)
  return string.match(waiter, '^[^.]*')
end

-- Wakes what waits under `name` in a process; false if nobody can have heard it. (On a cluster only those
-- are known who listen at this node, so a process may have heard it all the same.)
local function wake(process, name)
  return redis.pcall('PUBLISH', ARGV[2] .. process, name) ~= 0
end

local function wake_waiter(waiter)
  return wake(process_of(waiter), waiter)
end
