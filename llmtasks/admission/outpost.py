"""The fleet's admission for a process that goes on with a share of its own while Redis is away.

The same face as `Admission`. As long as Redis answers everything goes there. From its first failure on
nothing of admission waits for it: one look a second finds out when it is back, and then everything goes
there again by itself. In between, from when the grants that others still hold are used up until `local_for_s`
after the last answer, `Alone` decides; before and after that jobs hold. What was granted there is settled
there: the fleet has no grant of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import RedisError

from llmtasks import logs, settings
from llmtasks.admission.admission import Admission, fleet_of
from llmtasks.admission.alone import HORIZON_S, Alone
from llmtasks.admission.connection import HANGS_S, ended
from llmtasks.admission.decider import Decider
from llmtasks.admission.decisions import (
    Abandoned,
    Claim,
    Decision,
    Go,
    Outcome,
    ProviderStatus,
    Wait,
)
from llmtasks.admission.turns import Turns
from llmtasks.errors import AdmissionUnavailable, LLMTasksError

T = TypeVar("T")

_log = logs.get("admission")

#: Seconds between two looks at how the fleet stands, and whether its Redis answers.
_LOOK_S = 1.0


class Outpost:
    """Decides with the fleet, and alone where that is allowed. Lives on the loop.

    Args:
        fleet: The fleet's decisions.
        alone: This process' share.
        local_for_s: Seconds after the last answer of Redis when it holds after all.
    """

    def __init__(self, fleet: Admission, alone: Alone, *, local_for_s: float) -> None:
        self.wakes = fleet.wakes
        self._fleet = fleet
        self._alone = alone
        self._local_for_s = local_for_s
        self._answered: float | None = None
        self._lost: float | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._spent = 0
        #: The latest attempt of each waiter that has not left.
        self._latest: dict[str, str] = {}
        self._waiting: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to look after Redis."""
        self._in_background(self._look_always())

    async def aclose(self) -> None:
        """Look no more, and close the connections."""
        for task in tuple(self._tasks):
            await ended(task)
        await self._fleet.aclose()

    @property
    def on_its_own(self) -> bool:
        """Whether this process decides without the fleet now. Any thread may ask."""
        return time.monotonic() < self._until()

    async def admit(self, claim: Claim) -> Decision:
        """As `Admission.admit`."""
        self._latest[claim.waiter] = claim.attempt_id
        if self._lost is None:
            asked = time.monotonic()
            asking = asyncio.ensure_future(self._fleet.admit(claim))
            await asyncio.wait((asking, self._gone), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                self._in_background(self._too_late(asking, claim))
                return self._admit_alone(claim)
            try:
                decision = asking.result()
            except AdmissionUnavailable:
                self._failed(asked)
            else:
                self._heard()
                return decision
        return self._admit_alone(claim)

    async def _too_late(self, asking: asyncio.Future[Decision], claim: Claim) -> None:
        """A decision for which nobody waited any more stands in nobody's way: its grant is given back,
        and its waiter leaves, unless that has asked again by now and may lead or wait because of it.
        """
        with contextlib.suppress(LLMTasksError):
            decision = await asking
            if isinstance(decision, Go):
                await self._fleet.settle(decision, Abandoned())
            if self._latest.get(claim.waiter, claim.attempt_id) == claim.attempt_id:
                await self._fleet.leave(claim.waiter)

    def _admit_alone(self, claim: Claim) -> Go | Wait:
        now, until = time.monotonic(), self._until()
        decision = self._alone.admit(claim, now, until) if now < until else None
        if decision is None:
            raise _away()
        if isinstance(decision, Wait):
            self._waiting[claim.waiter] = None
        else:
            self._spent += 1
            self._waiting.pop(claim.waiter, None)
        return decision

    async def confirm(self, go: Go) -> float:
        """As `Admission.confirm`. Of its own share nothing is used any more when Redis is back."""
        if self._alone.holds(go.attempt_id):
            if self._lost is None:
                return math.inf
            return self._alone.blocked_for((go.provider,), time.monotonic())[0]
        if self._lost is not None:
            raise _away()
        return await self._fleet.confirm(go)

    async def settle(self, go: Go, outcome: Outcome) -> None:
        """As `Admission.settle`, with whoever granted it."""
        now = time.monotonic()
        self._alone.learn(go.provider, outcome, now)
        if not self._alone.holds(go.attempt_id):
            await self._fleet.settle(go, outcome)
            return
        self._alone.settle(go, outcome, now)
        for first in self._waiting:
            self.wakes.ring(first)
            break

    def charged(self, go: Go, outcome: Outcome) -> Mapping[str, float]:
        """As `Admission.charged`."""
        return self._fleet.charged(go, outcome)

    async def leave(self, waiter: str, *, failed: bool = False) -> None:
        """As `Admission.leave`; nobody waits for a Redis that is away to hear of it."""
        self._latest.pop(waiter, None)
        self._waiting.pop(waiter, None)
        leaving = self._fleet.leave(waiter, failed=failed)
        if self._lost is None:
            await leaving
        else:
            self._in_background(_quietly(leaving))

    async def blocked_for(self, providers: Sequence[str]) -> tuple[float, str]:
        """As `Admission.blocked_for`."""
        if self._lost is None:
            return await self._soon(self._fleet.blocked_for(providers))
        now = time.monotonic()
        if now >= self._until():
            raise _away()
        return self._alone.blocked_for(providers, now)

    async def status(self) -> list[ProviderStatus]:
        """As `Admission.status`: what the fleet knows, or nothing."""
        if self._lost is not None:
            raise _away()
        return await self._soon(self._fleet.status())

    def _until(self) -> float:
        """Until when this process decides alone; the past when it does not."""
        answered, lost = self._answered, self._lost
        if answered is None or lost is None or time.monotonic() < lost + HORIZON_S:
            return -math.inf
        return answered + self._local_for_s

    def _heard(self) -> None:
        self._answered = time.monotonic()
        if self._lost is not None:
            away = self._answered - self._lost
            logs.info(_log, "redis-back", away=away, granted_alone=self._spent)
            self._lost, self._spent = None, 0
            self._gone = asyncio.get_running_loop().create_future()
            for waiter in self._waiting:
                self.wakes.ring(waiter)
            self._waiting.clear()

    def _failed(self, asked: float) -> None:
        """No answer to what was `asked` then; it says nothing if others were answered since."""
        if self._lost is None and (self._answered is None or asked > self._answered):
            logs.warning(_log, "redis-away")
            self._lost = time.monotonic()
            self._gone.set_result(None)

    async def _soon(self, answer: Coroutine[Any, Any, T]) -> T:
        """The fleet's answer. One that hangs is none."""
        asked = time.monotonic()
        try:
            async with asyncio.timeout(HANGS_S):
                return await answer
        except (AdmissionUnavailable, TimeoutError):
            self._failed(asked)
            raise _away() from None

    async def _look_always(self) -> None:
        turns = Turns(_log, "look-failed")
        while True:
            with turns.turn():
                await self._look()
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        try:
            statuses = await self._soon(self._fleet.status())
        except AdmissionUnavailable:
            return
        except RedisError:
            # An error of a script is an answer all the same; whoever asks something real meets it too.
            self._heard()
            raise
        else:
            self._alone.know(statuses, time.monotonic())
            self._heard()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def decider_of(configured: settings.Settings) -> Decider:
    """The fleet's decisions; where it is allowed, those of a process that may go on alone. On the loop."""
    fleet = fleet_of(configured)
    if configured.redis.local_share == 0:
        return fleet
    alone = Alone(configured.providers, configured.redis.local_share)
    outpost = Outpost(fleet, alone, local_for_s=configured.redis.local_for_s)
    outpost.start()
    return outpost


def _away() -> AdmissionUnavailable:
    return AdmissionUnavailable("the fleet's Redis does not answer")


async def _quietly(leaving: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(AdmissionUnavailable):
        await leaving
