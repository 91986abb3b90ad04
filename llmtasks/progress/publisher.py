"""The worker's side: pieces go out as fast as Redis takes them, those that come meanwhile together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmtasks import logs
from llmtasks.admission.connection import AWAY, Client, connect
from llmtasks.errors import LLMTasksError
from llmtasks.progress.sight import FENCE, KIND, OFFSET, TEXT, Kind
from llmtasks.settings import Settings, Streams

_log = logs.get("progress")

#: Characters that may wait for Redis, of all jobs; what comes beyond is not shown.
MAX_WAITING: Final = 4_000_000
#: Seconds that the rest has to go out when the process ends.
_FLUSH_S: Final = 2.0


def key(prefix: str, job_id: str) -> str:
    """Of a job's stream. All of them in one hash slot, so that a cluster's node reads many at once."""
    return f"{{{prefix}:stream}}:{job_id}"


@dataclass(slots=True)
class _Waiting:
    """An entry that is not written yet; a text grows while it waits."""

    key: str
    kind: Kind
    fence: int
    offset: int = 0
    text: str = ""

    def fields(self) -> dict[Any, Any]:
        """As Redis is given it."""
        text = {TEXT: self.text} if self.kind is Kind.TEXT else {}
        return {KIND: self.kind.value, FENCE: self.fence, OFFSET: self.offset, **text}

    def goes_on_with(self, other: _Waiting) -> bool:
        """Whether the other is the next piece of the same answer."""
        if self.kind is not Kind.TEXT or other.kind is not Kind.TEXT or self.fence != other.fence:
            return False
        return other.offset == self.offset + len(self.text)


class Publisher:
    """Writes the streams of one process. Lives on the loop.

    Nothing here waits for Redis, and nothing fails with it: what cannot be written is dropped.
    """

    def __init__(self, redis: Client, *, prefix: str, keep: Streams) -> None:
        self._redis = redis
        self._prefix = prefix
        self._keep_ms = round(1000 * keep.keep_s)
        self._max_entries = keep.max_entries
        self._waiting: dict[str, list[_Waiting]] = {}
        self._characters = 0
        self._writing: asyncio.Task[None] | None = None
        self._failing = False

    @classmethod
    def made(cls, settings: Settings) -> Publisher:
        """The one that these settings name, not yet connected."""
        redis = connect(settings.redis_url, cluster=settings.redis.cluster)
        return cls(redis, prefix=settings.redis.prefix, keep=settings.streams)

    def of(
        self, job_id: str, fence: int, on_loop: Callable[[Callable[[], None]], None]
    ) -> JobStream:
        """The stream of a job in the hands of the claim with this fence.

        `on_loop` runs a function on the loop, for those calls that come from a slot's thread.
        """
        return JobStream(self, key(self._prefix, job_id), fence, on_loop)

    async def aclose(self) -> None:
        """Write what waits, if Redis takes it soon, and close the connections."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_FLUSH_S)
            self._writing.cancel()
        await self._redis.aclose()

    def put(self, new: _Waiting) -> None:
        """Write an entry soon, with the text that waits before it where it goes on."""
        if self._characters + len(new.text) > MAX_WAITING:
            return
        self._characters += len(new.text)
        waiting = self._waiting.setdefault(new.key, [])
        if waiting and waiting[-1].goes_on_with(new):
            waiting[-1].text += new.text
        else:
            waiting.append(new)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._waiting:
            together, self._waiting, self._characters = self._waiting, {}, 0
            try:
                await self._send(together)
                self._failing = False
            except AWAY as error:
                if not self._failing:
                    logs.warning(_log, "not-streamed", why=type(error).__name__)
                self._failing = True

    async def _send(self, together: Mapping[str, Sequence[_Waiting]]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for stream, entries in together.items():
            for one in entries:
                pipeline.xadd(stream, one.fields(), maxlen=self._max_entries, approximate=True)
            pipeline.pexpire(stream, self._keep_ms)
        await pipeline.execute()


class JobStream:
    """One claim's answer on its way: a `gateway.Listener`."""

    def __init__(
        self,
        publisher: Publisher,
        stream: str,
        fence: int,
        on_loop: Callable[[Callable[[], None]], None],
    ) -> None:
        self._publisher = publisher
        self._key = stream
        self._fence = fence
        self._on_loop = on_loop
        self._offset = 0

    def begin(self) -> None:
        """An answer begins; what was there before is void. From any thread."""
        self._on_loop(self._begin)

    def given(self, text: str) -> None:
        """The whole of an answer that was already there. From any thread."""
        self._on_loop(lambda: self.text(text))

    def end(self) -> None:
        """The job's row has ended. From any thread."""
        self._on_loop(lambda: self._put(Kind.END, self._offset))

    def called(self) -> None:
        """Nothing is to be shown of it."""

    def text(self, piece: str) -> None:
        """The next piece of the answer. On the loop."""
        self._put(Kind.TEXT, self._offset, piece)
        self._offset += len(piece)

    def again(self, why: LLMTasksError) -> None:  # noqa: ARG002 - the job may ask as often as it may
        """The call broke: the answer begins anew. On the loop."""
        self._begin()

    def _begin(self) -> None:
        self._offset = 0
        self._put(Kind.BEGIN)

    def _put(self, kind: Kind, offset: int = 0, text: str = "") -> None:
        self._publisher.put(_Waiting(self._key, kind, self._fence, offset, text))
