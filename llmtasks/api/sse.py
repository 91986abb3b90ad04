"""Server-sent events to clients who may leave at any moment, and whose leaving ends the work for them.

The form: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmtasks import logs, metrics
from llmtasks.errors import LLMTasksError, NotNow

_log = logs.get("api")

#: The last event of a stream that came to its end.
DONE: Final = b"data: [DONE]\n\n"
#: Seconds of silence after which a comment shows proxies, and us, that the other side is still there.
HEARTBEAT_S: Final = 15.0
_HEARTBEAT: Final = b": still here\n\n"
#: Seconds for a generator to clean up after its client has left.
_CLEAN_S: Final = 5.0

_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx holds back nothing
}

Events = AsyncGenerator[bytes, None]


def event(data: object, *, kind: str | None = None, event_id: str | None = None) -> bytes:
    """One event. JSON has no line breaks of its own, so that its data is one line."""
    lines = [
        *([] if event_id is None else [f"id: {event_id}"]),
        *([] if kind is None else [f"event: {kind}"]),
        f"data: {json.dumps(data, ensure_ascii=False)}",
    ]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


class Room:
    """How many streams one server sends at once, and that it is about to stop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self.stopping = asyncio.Event()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count a stream.

        Raises:
            NotNow: there are as many as there may be.
        """
        if self._open >= self._most:
            raise NotNow(f"this server sends {self._most} streams already", delay=1.0)
        self._open += 1
        metrics.api_streams.inc()
        try:
            yield
        finally:
            self._open -= 1
            metrics.api_streams.dec()


class EventStream(Response):
    """Sends events until they end, the client leaves, or, where it may be cut, the server stops.

    The generator is closed in each case, by the task that ran it.
    """

    def __init__(self, events: Events, stopping: asyncio.Event | None = None) -> None:
        super().__init__(status_code=200, headers=_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send them."""
        sending = asyncio.ensure_future(self._send(send))
        watching: list[asyncio.Future[Any]] = [asyncio.ensure_future(_left(receive))]
        if self._stopping is not None:
            watching.append(asyncio.ensure_future(self._stopping.wait()))
        try:
            await asyncio.wait([sending, *watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *watching):
                task.cancel()
            await asyncio.wait([sending, *watching], timeout=_CLEAN_S)
        if sending.done() and not sending.cancelled():
            sending.result()
        elif self._stopping is not None and self._stopping.is_set():
            await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(with_heartbeat(_told(self._events))) as events:
            async for chunk in events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _told(events: Events) -> Events:
    """The events; what goes wrong is the last one, since the status has been sent."""
    try:
        async with contextlib.aclosing(events):
            async for chunk in events:
                yield chunk
    except LLMTasksError as error:
        yield error_event(type(error).__name__, str(error))
    except Exception as error:  # noqa: BLE001  # a defect; its message may quote the document
        logs.error(_log, "stream-failed", why=type(error).__name__, at=logs.place(error))
        yield error_event("InternalError", "the server made a mistake; its log says where")


async def with_heartbeat(events: Events, every_s: float = HEARTBEAT_S) -> Events:
    """The events, and a comment where there was none for so long."""
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([coming], timeout=every_s)
            if not done:
                yield _HEARTBEAT
                continue
            finished, coming = coming, None
            try:
                chunk = finished.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming], timeout=_CLEAN_S)
        await events.aclose()


async def first_of(events: Events, within_s: float, receive: Receive) -> Events:
    """The same events, once the first one is there, or so many seconds have passed.

    What goes wrong before that is raised here, while it can still be told by a status. A client who leaves
    meanwhile ends them.
    """
    coming = asyncio.ensure_future(anext(events))
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait([coming, leaving], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return _after(coming.result(), events)
        _stay(leaving)
    except BaseException:
        coming.cancel()
        await asyncio.wait([coming], timeout=_CLEAN_S)
        await events.aclose()
        raise
    finally:
        leaving.cancel()
    return _late(coming, events)


class ClientLeftError(Exception):
    """Nobody reads the answer any more."""


def _stay(leaving: asyncio.Future[None]) -> None:
    if leaving.done():
        raise ClientLeftError


async def _after(first: bytes, events: Events) -> Events:
    try:
        yield first
        async for chunk in events:
            yield chunk
    finally:
        await events.aclose()


async def _late(coming: asyncio.Future[bytes], events: Events) -> Events:
    try:
        yield await coming
        async for chunk in events:
            yield chunk
    except StopAsyncIteration:
        return
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.wait([coming], timeout=_CLEAN_S)
        await events.aclose()


async def _left(receive: Receive) -> None:
    """Until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def error_event(name: str, message: str) -> bytes:
    """What a stream ends with that came to no good end."""
    body: Mapping[str, Any] = {"error": {"type": name, "message": message}}
    return event(body, kind="error")
