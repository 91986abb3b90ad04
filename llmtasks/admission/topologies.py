"""How a claim and a settlement reach a question and the fleet: in one step where one server has both, in two
on a cluster, where they lie in different hash slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import RedisCluster

from llmtasks import settings
from llmtasks.admission.calls import Calls, Providers
from llmtasks.admission.connection import Client
from llmtasks.admission.decisions import Claim, Go, Outcome
from llmtasks.admission.leases import Lease, Leases
from llmtasks.admission.pipelines import Command, Ways, told

#: The reply to a claim, as admit.lua gives it, and the cached value if there is one.
Reply = tuple[list[Any], bytes | None]

#: Seconds for which it is noted that all providers are out, at the longest: a block may end before its time.
_NOTED_S = 10.0


class Topology(Protocol):
    """What depends on where keys are."""

    async def claim(
        self, claim: Claim, providers: Providers, births: Sequence[str], key: str | None
    ) -> Reply:
        """Decide a claim; `key` if it may be answered, follow or lead. Who leads is held to do so."""

    async def settle(
        self, provider: settings.Provider, go: Go, outcome: Outcome, store: Command | None
    ) -> None:
        """Book an outcome, and store its answer if there is one to be shared."""


def topology(redis: Client, to: Ways, calls: Calls, leases: Leases) -> Topology:
    """The one that fits the client."""
    fitting = Cluster if isinstance(redis, RedisCluster) else OneServer
    return fitting(to, calls, leases)


class OneServer:
    """One script and one round trip each."""

    def __init__(self, to: Ways, calls: Calls, leases: Leases) -> None:
        self._to, self._calls, self._leases = to, calls, leases

    async def claim(
        self, claim: Claim, providers: Providers, births: Sequence[str], key: str | None
    ) -> Reply:
        """See `Topology`."""
        admit = self._calls.admit(claim, providers, births, key=key)
        if key is None:
            (reply,) = await told(self._to, admit)
            return reply, None
        # The value after the decision: one that has just come is not needed, one that has just gone
        # makes the claim ask again. A large value never passes through a script.
        reply, value = await told(self._to, admit, ("GET", self._calls.answer_key(key)))
        if reply[-1] == 1:
            self._leases.hold(claim.waiter, Lease(key, self._calls.renew(claim.waiter, key)))
        return reply, value

    async def settle(
        self, provider: settings.Provider, go: Go, outcome: Outcome, store: Command | None
    ) -> None:
        """See `Topology`."""
        settle = self._calls.settle(provider, go, outcome, shared=store is not None)
        # The answer before the script, which wakes those who wait for it.
        await told(self._to, *([] if store is None else [store]), settle)


class Cluster:
    """The question's part in its own hash slot (lua/seek.lua, lua/land.lua), then the fleet's in its."""

    def __init__(self, to: Ways, calls: Calls, leases: Leases) -> None:
        self._to, self._calls, self._leases = to, calls, leases

    async def claim(
        self, claim: Claim, providers: Providers, births: Sequence[str], key: str | None
    ) -> Reply:
        """See `Topology`."""
        if key is None:
            return await self._admitted(claim, providers, births), None
        sought, value = await self._seek(claim, key, looked=False)
        if sought[0] == b"look":
            out = await self._out(providers)
            if out is not None:
                return out, None
            sought, value = await self._seek(claim, key, looked=True)
        if sought[0] != b"lead":
            return sought, value
        # Before the rest: whatever becomes of that, it leads and can leave.
        self._leases.hold(claim.waiter, Lease(key, self._calls.renew(claim.waiter, key)))
        reply = await self._admitted(claim, providers, births)
        blocked = reply[0] == b"wait" and reply[3] == 1
        if blocked and sought[1] == 1:
            await self._give_up_lead(claim.waiter, key, float(reply[1]))
        return reply, None

    async def settle(
        self, provider: settings.Provider, go: Go, outcome: Outcome, store: Command | None
    ) -> None:
        """See `Topology`."""
        settle = self._calls.settle(provider, go, outcome)
        if store is None or go.key is None:
            await told(self._to, settle)
        else:
            await told(self._to, store, self._calls.land(go.waiter, go.key), settle)

    async def _seek(self, claim: Claim, key: str, *, looked: bool) -> Reply:
        seek = self._calls.seek(claim, key, looked=looked)
        sought, value = await told(self._to, seek, ("GET", self._calls.answer_key(key)))
        return sought, value

    async def _admitted(
        self, claim: Claim, providers: Providers, births: Sequence[str]
    ) -> list[Any]:
        (reply,) = await told(self._to, self._calls.admit(claim, providers, births))
        found: list[Any] = reply
        return found

    async def _out(self, providers: Providers) -> list[Any] | None:
        """The wait while all of the providers are out; None if one of them is not."""
        (replies,) = await told(self._to, self._calls.look(providers))
        soonest = min(range(len(replies)), key=lambda index: float(replies[index][0]))
        seconds, why = replies[soonest][:2]
        if float(seconds) <= 0:
            return None
        return [b"wait", seconds, b"%s: %s" % (providers[soonest].name.encode(), why), 1, 0]

    async def _give_up_lead(self, waiter: str, key: str, seconds: float) -> None:
        """Who is blocked leads nobody; those who followed need not find out one after the other."""
        await self._leases.release(waiter)
        milliseconds = max(1, round(1000 * min(seconds, _NOTED_S)))
        note: Command = ("SET", self._calls.note_key(key), 1, "PX", milliseconds)
        await told(self._to, note, self._calls.leave(waiter, key, failed=False))
