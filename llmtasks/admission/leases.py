"""What this process holds in Redis for as long as it says so again and again: questions that it leads
(lua/flight.lua) and places at providers (lua/slots.lua). What a dead process held is free a moment later.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from llmtasks import logs
from llmtasks.admission.connection import ended
from llmtasks.admission.pipelines import Ways, ask
from llmtasks.admission.scripts import Call
from llmtasks.admission.turns import Turns

_log = logs.get("admission")

#: Seconds between two renewals: two may fail before a lease ends (LEASE in lua/flight.lua, SLOT_LEASE in
#: lua/slots.lua).
RENEW_S = 3.0

#: Seconds before the next attempt when the server did not answer: what has run out meanwhile is somebody
#: else's until it is renewed.
_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Lease:
    """How one thing is renewed: a script that answers 0 if it is another's now. `of` tells what it is."""

    of: str
    renewal: Call


class Leases:
    """Keeps all of them alive, in one round trip for all. Lives on the loop."""

    def __init__(self, to: Ways) -> None:
        self._to = to
        self._held: dict[str, Lease] = {}
        self._under_way = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    def hold(self, name: str, lease: Lease) -> None:
        """Renew it from now on, until it is released under this name or lost."""
        self._held[name] = lease
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew_always())

    async def release(self, name: str) -> Lease | None:
        """Renew it no more; what it was, None if there was (or is, by now) none."""
        lease = self._held.pop(name, None)
        if lease is not None and self._under_way.locked():
            # A renewal that arrives after its end would begin it anew, and nobody would know.
            async with self._under_way:
                pass
        return lease

    async def aclose(self) -> None:
        """Let them run out."""
        if self._renewing is not None:
            await ended(self._renewing)

    async def _renew_always(self) -> None:
        turns = Turns(_log, "leases-not-renewed")
        while True:
            await asyncio.sleep(RENEW_S if turns.well else _AGAIN_S)
            with turns.turn():
                await self.renew()

    async def renew(self) -> None:
        """Renew all; forget those that another has taken over."""
        async with self._under_way:
            held = dict(self._held)
            if not held:
                return
            replies = await ask(self._to, [lease.renewal for lease in held.values()])
            for (name, lease), reply in zip(held.items(), replies, strict=True):
                # What was won again meanwhile is another lease, of which this reply says nothing.
                if reply == 0 and self._held.get(name) is lease:
                    del self._held[name]
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
