"""The reader's side: any number of streams over one connection that waits for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis

from llmtasks import logs
from llmtasks.admission.connection import AWAY, Client, connect, ended
from llmtasks.progress.publisher import key
from llmtasks.progress.sight import Entry, entry, order
from llmtasks.settings import Settings

_log = logs.get("progress")

#: Before the first entry.
BEGINNING: Final = "0-0"
#: Milliseconds that a read waits for news; it is woken for a stream that is new to it.
_BLOCK_MS: Final = 2_000
#: The same at a cluster, where nobody is woken.
_CLUSTER_BLOCK_MS: Final = 50
#: Seconds in which a read that was sent arrives.
_ON_ITS_WAY_S: Final = 0.002
#: Entries of one stream in one reply.
_AT_ONCE: Final = 500
#: Seconds until a Redis that does not answer is asked again.
_AGAIN_S: Final = 0.5


@dataclass(slots=True)
class _Followed:
    """A stream that is read on from `cursor`, for everybody who follows it."""

    cursor: str
    queues: list[asyncio.Queue[Sequence[Entry]]] = field(default_factory=list)

    def pass_on(self, entries: Sequence[Entry]) -> None:
        """Give them to everybody."""
        if entries:
            self.cursor = entries[-1].id
            for queue in self.queues:
                queue.put_nowait(entries)


class Reader:
    """Follows the streams of jobs. Lives on one loop. Without Redis there are no news, and no errors."""

    def __init__(self, redis: Client, *, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix
        self._followed: dict[str, _Followed] = {}
        self._some = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._connection: int | None = None
        self._turn = 0
        self._unblocking: set[asyncio.Task[None]] = set()

    @classmethod
    def made(cls, settings: Settings) -> Reader:
        """The one that these settings name, not yet connected."""
        redis = connect(settings.redis_url, cluster=settings.redis.cluster)
        return cls(redis, prefix=settings.redis.prefix)

    async def aclose(self) -> None:
        """Stop reading, and close the connections."""
        if self._reading is not None:
            await ended(self._reading)
        await self._redis.aclose()

    async def find(self, job_id: str, entry_id: str) -> Entry | None:
        """An entry, if it is still there."""
        with contextlib.suppress(*AWAY, ValueError):
            order(entry_id)
            found = await self._range(key(self._prefix, job_id), entry_id, entry_id)
            return next(iter(found), None)
        return None

    async def follow(
        self, job_id: str, after: str = BEGINNING
    ) -> AsyncGenerator[Sequence[Entry], None]:
        """The entries after this one, as they come, without end; some at once, never none."""
        stream = key(self._prefix, job_id)
        queue: asyncio.Queue[Sequence[Entry]] = asyncio.Queue()
        last = order(after)
        followed = self._followed.get(stream)
        if followed is None:
            followed = self._followed[stream] = _Followed(after)
        followed.queues.append(queue)
        self._wake()
        try:
            joined = order(followed.cursor) > last
            found = await self.between(job_id, after) if joined else await queue.get()
            while True:
                entries = [one for one in found if order(one.id) > last]
                if entries:
                    last = order(entries[-1].id)
                    yield entries
                found = await queue.get()
        finally:
            followed.queues.remove(queue)
            if not followed.queues and self._followed.get(stream) is followed:
                del self._followed[stream]

    async def between(self, job_id: str, after: str = BEGINNING) -> Sequence[Entry]:
        """What a stream holds now behind this entry."""
        with contextlib.suppress(*AWAY):
            return await self._range(key(self._prefix, job_id), f"({after}", "+")
        return []

    async def _range(self, stream: str, first: str, last: str) -> list[Entry]:
        found: Any = await self._redis.xrange(stream, first, last)
        return _entries(found)

    def _wake(self) -> None:
        """Have the streams read, those that have just come too."""
        self._some.set()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read_on())
        elif self._connection is not None and isinstance(self._redis, Redis):
            connection, self._connection = self._connection, None
            unblocking = asyncio.get_running_loop().create_task(self._unblock(connection))
            self._unblocking.add(unblocking)
            unblocking.add_done_callback(self._unblocking.discard)

    async def _unblock(self, connection: int) -> None:
        """End the read that is under way; it may just be on its way to the server."""
        turn = self._turn
        with contextlib.suppress(*AWAY):
            while self._turn == turn:
                if await self._redis.client_unblock(connection):
                    return
                await asyncio.sleep(_ON_ITS_WAY_S)

    async def _read_on(self) -> None:
        while True:
            try:
                async with contextlib.AsyncExitStack() as closing:
                    await self._read_with(closing)
            except AWAY as error:
                logs.warning(_log, "streams-away", why=type(error).__name__)
                self._connection = None
                await asyncio.sleep(_AGAIN_S)

    async def _read_with(self, closing: contextlib.AsyncExitStack) -> None:
        """Read with one connection, for as long as it lives."""
        client: Any = self._redis
        block, own = _CLUSTER_BLOCK_MS, None
        if isinstance(self._redis, Redis):
            client = await closing.enter_async_context(self._redis.client())
            block, own = _BLOCK_MS, int(await client.client_id())
        while True:
            if not self._followed:
                self._some.clear()
                await self._some.wait()
            followed = dict(self._followed)
            cursors = {stream: one.cursor for stream, one in followed.items()}
            self._connection = own
            found = await client.xread(cursors, count=_AT_ONCE, block=block)
            self._connection = None
            self._turn += 1
            for name, entries in _pairs(found):
                stream = name.decode()
                # One that was left and is followed anew begins where its new reader wants.
                if self._followed.get(stream) is followed[stream]:
                    followed[stream].pass_on(_entries(entries))


def _entries(found: Any) -> list[Entry]:
    """Those that are of our form; what somebody else wrote there is nothing."""
    entries = []
    for one in found or ():
        with contextlib.suppress(ValueError, KeyError):
            entries.append(entry(*one))
    return entries


def _pairs(found: Any) -> list[tuple[bytes, Any]]:
    """Streams with their entries, in the form of either protocol."""
    if not found:
        return []
    return list(found.items()) if isinstance(found, dict) else list(found)
