-- What a server that lost everything (restarted empty, flushed) lost were also promises: calls that were
-- granted before it are still under way, at most HORIZON ahead. Nothing new starts until then, or a loss
-- would let pass a burst. (One that comes back with a state of a moment ago is not found out: what it was
-- told since is granted again, so that should be a second at most, as with appendfsync everysec.) Seconds.
--
-- A state that is new has another birth than the one a process was last granted a call under: so the
-- first to come who had one tells all. Fleets that begin have none, and wait for nothing.

local function notice_loss(state, known)
  if known == '' or known == state.born then return end
  local born = state.born == '' and state.now or tonumber(state.born)
  if born + HORIZON > math.max(state.now, state.unknown_until) then
    set(state, 'unknown_until', born + HORIZON)
    save_state(state)
  end
end
