"""Wake-up calls: who waits is told when it is worth asking again, instead of asking again and again.

One subscription a process, on `<prefix>:wake:<process id>`, made with the first question. A message is the
name that shall wake up: the waiter's own (a question's, `<process id>.<question id>`, from which scripts know
the channel), or a cache key, for all questions of the process that wait for its answer. A lost message costs
only time: whoever waits has a timer too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Iterator

from redis.asyncio.client import PubSub

from llmtasks import logs
from llmtasks.admission.connection import ended
from llmtasks.admission.pipelines import Ways
from llmtasks.admission.turns import Turns

_log = logs.get("admission")

#: Seconds without a message after which the connection is tried, and after twice as long given up:
#: a peer that vanished without a word would keep it silent for ever.
_QUIET_S = 15.0

#: Seconds before subscribing again, about: a fleet should not come back as one.
_AGAIN_S = 1.0


class Bell(asyncio.Event):
    """Rings for one question. Clear it before asking, so that no ring after the reply is lost."""

    async def rings_within(self, seconds: float) -> bool:
        """Wait for it, `seconds` at the longest."""
        if not self.is_set() and seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.wait()
        return self.is_set()


class Wakes:
    """The bells of one process. Lives on the loop."""

    def __init__(self, to: Ways, prefix: str) -> None:
        #: What the channels' names begin with; the process id follows.
        self.channels = f"{prefix}:wake:"
        self._to = to
        self._process = uuid.uuid4().hex
        self._bells: dict[str, set[Bell]] = {}
        self._hearing: asyncio.Task[None] | None = None

    def new_waiter(self) -> str:
        """A name for a question that is new; scripts can wake it."""
        return f"{self._process}.{uuid.uuid4().hex}"

    @contextlib.contextmanager
    def bell(self, *names: str) -> Iterator[Bell]:
        """A bell that rings for any of these names."""
        if self._hearing is None:
            self._hearing = asyncio.get_running_loop().create_task(self._hear())
        bell = Bell()
        for name in names:
            self._bells.setdefault(name, set()).add(bell)
        try:
            yield bell
        finally:
            for name in names:
                self._bells[name].discard(bell)
                if not self._bells[name]:
                    del self._bells[name]

    def ring(self, name: str) -> None:
        """Wake what waits under this name here."""
        for bell in self._bells.get(name, ()):
            bell.set()

    def ring_all(self) -> None:
        """Wake everything that waits here."""
        for name in self._bells:
            self.ring(name)

    async def aclose(self) -> None:
        """End the subscription."""
        if self._hearing is not None:
            await ended(self._hearing)

    async def _hear(self) -> None:
        """Pass on messages for as long as the process lives, over any number of outages."""
        turns = Turns(_log, "wakes-away")
        while True:
            with turns.turn():
                async with await self._to.subscription() as subscription:
                    await subscription.subscribe(self.channels + self._process)
                    turns.went_well()
                    await self._pass_on(subscription)
            await asyncio.sleep(_AGAIN_S * random.uniform(0.5, 1.5))

    async def _pass_on(self, subscription: PubSub) -> None:
        """Ring for each message; returns when the server has fallen silent."""
        asked = False
        while True:
            message = await subscription.get_message(timeout=_QUIET_S)
            if message is not None:
                asked = False
                if message["type"] == "message":
                    self.ring(message["data"].decode())
            elif asked:
                return
            else:
                await subscription.ping()
                asked = True
