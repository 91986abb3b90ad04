"""One look at the database for all who watch the same. Nobody watches: nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Final, Generic, TypeVar

from llmtasks import logs, watching
from llmtasks.client import status
from llmtasks.errors import StoreUnavailable, UnknownJob
from llmtasks.store.batches import BatchStatus

_log = logs.get("api")

#: Seconds between two looks, at the least; and how many times longer they are apart than one takes.
EVERY_S: Final = 0.5
_APART: Final = 10
#: Seconds between two looks at jobs whose workers tell their end in another way.
JOBS_EVERY_S: Final = 1.0

T = TypeVar("T")


class _Watched(Generic[T]):
    """The last value of something, and who wants the next one."""

    def __init__(self) -> None:
        self.value: T | None = None
        self.version = 0
        self.watchers = 0
        self.changed = asyncio.Condition()
        self.looking: asyncio.Task[None] | None = None


class BatchPolls:
    """How batches stand, for any number of watchers."""

    def __init__(self, look: Callable[[str], BatchStatus] = status) -> None:
        self._look = look
        self._watched: dict[str, _Watched[BatchStatus | None]] = {}

    async def changes(self, batch_id: str) -> AsyncGenerator[BatchStatus | None, None]:
        """How it stands now, and again whenever that has changed, without end; None once it is gone."""
        one = self._watched.setdefault(batch_id, _Watched())
        one.watchers += 1
        if one.looking is None:
            one.looking = asyncio.create_task(self._look_on(batch_id, one))
        seen = 0
        try:
            while True:
                async with one.changed:
                    while one.version == seen:
                        await one.changed.wait()
                    seen, value = one.version, one.value
                yield value
        finally:
            one.watchers -= 1
            if not one.watchers and self._watched.get(batch_id) is one:
                del self._watched[batch_id]
                one.looking.cancel()

    async def _look_on(self, batch_id: str, one: _Watched[BatchStatus | None]) -> None:
        while True:
            started = time.monotonic()
            try:
                value = await asyncio.to_thread(self._look, batch_id)
            except UnknownJob:
                value = None
            except Exception as error:  # noqa: BLE001  # its watchers would wait for ever
                _untold(error)
                await asyncio.sleep(EVERY_S)
                continue
            async with one.changed:
                if not one.version or value != one.value:
                    one.value, one.version = value, one.version + 1
                    one.changed.notify_all()
            await asyncio.sleep(max(EVERY_S, _APART * (time.monotonic() - started)))


class JobEnds:
    """Says when jobs have ended, also of those that no worker had."""

    def __init__(self) -> None:
        self._ended: dict[str, list[asyncio.Event]] = {}
        self._looking: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the job has ended."""
        ended = asyncio.Event()
        self._ended.setdefault(job_id, []).append(ended)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on())
        try:
            yield ended
        finally:
            self._ended[job_id].remove(ended)
            if not self._ended[job_id]:
                del self._ended[job_id]
            if not self._ended:
                self._looking.cancel()
                self._looking = None

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(JOBS_EVERY_S)
            wanted = [
                job for job, events in self._ended.items() if not all(e.is_set() for e in events)
            ]
            try:
                found = await asyncio.to_thread(watching.ended_of, wanted)
            except Exception as error:  # noqa: BLE001  # all jobs' watchers would wait for ever
                _untold(error)
                continue
            for job_id in found:
                for ended in self._ended.get(job_id, ()):
                    ended.set()


def _untold(error: Exception) -> None:
    """A look that failed is one that did not happen; an outage is known without a line for each."""
    if not isinstance(error, StoreUnavailable):
        logs.error(_log, "look-failed", why=type(error).__name__, at=logs.place(error))
