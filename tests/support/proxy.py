"""A TCP proxy that breaks connections in the ways networks do, between a real client and a real server.

Lives on a thread with a loop of its own; every method may be called from the test's thread and has taken
effect when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self, TypeVar

#: Closing a socket with this sends RST instead of FIN: the peer learns of it as of a crash.
_NO_LINGER = struct.pack("ii", 1, 0)
_CHUNK = 65_536

T = TypeVar("T")

#: Of bytes on their way to the server: whether its reply to them is to be lost.
Matches = Callable[[bytes], bool]


@dataclass(eq=False)
class _Link:
    """One client's connection and its way on."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    abandoned: bool = False
    losing: bool = False

    def reset(self) -> None:
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()


class Proxy:
    """Forwards `127.0.0.1:port` to a target until told otherwise.

    Args:
        target_port: On the loopback. It may come and go; a client that comes meanwhile is refused by reset.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._losing: Matches | None = None
        #: How many replies were lost on purpose.
        self.lost = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def accept(self) -> None:
        """Take connections, again after `refuse` on the same port."""

        async def listen() -> None:
            if self._server is None:
                self._server = await asyncio.start_server(
                    self._connected, "127.0.0.1", self.port, backlog=1_000
                )
                self.port = self._server.sockets[0].getsockname()[1]

        self._do(listen())

    def refuse(self) -> None:
        """Take no more connections; those there are go on."""

        async def deaf() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None

        self._do(deaf())

    def cut(self) -> int:
        """Reset every connection there is; how many."""

        async def reset() -> int:
            links = list(self._links)
            for link in links:
                link.reset()
            return len(links)

        return self._do(reset())

    def freeze(self) -> None:
        """Forward nothing, in both ways; nobody is told. New connections are taken, and stay silent."""
        self._do(self._flow(False))

    def thaw(self) -> None:
        """Forward again what was held back and what comes, on every connection that is not abandoned."""
        self._do(self._flow(True))

    def abandon(self) -> int:
        """Leave every connection there is half open: it stays, silent for ever. How many; new ones work."""

        async def forget() -> int:
            links = list(self._links)
            for link in links:
                link.abandoned = True
            return len(links)

        return self._do(forget())

    def lose_reply(self, matches: Matches = bool) -> None:
        """The next bytes to the server that match arrive there; their reply is lost, with the connection."""

        async def arm() -> None:
            self._losing = matches

        self._do(arm())

    @property
    def connections(self) -> int:
        """Connections there are."""
        return len(self._links)

    def close(self) -> None:
        """End everything."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
            await asyncio.sleep(0)  # who was accepted a moment ago has a task from now on
            for link in list(self._links):
                link.reset()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)  # transports close in the turn after

        if not self._loop.is_closed():
            self._do(end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _do(self, action: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(10.0)

    async def _flow(self, flowing: bool) -> None:  # noqa: FBT001
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            back, on = await asyncio.open_connection("127.0.0.1", self._target_port)
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, OSError):
                return
            raise
        link = _Link(client=writer, server=on)
        self._links.add(link)
        try:
            # Cancelled by `close`: asyncio complains of a handler that ends so.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(
                    self._pump(link, reader, on, to_server=True),
                    self._pump(link, back, writer, to_server=False),
                )
        finally:
            self._links.discard(link)
            link.client.close()
            link.server.close()

    async def _pump(
        self,
        link: _Link,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        to_server: bool,
    ) -> None:
        """Carry one direction to its end; the other one learns of it as of a closed half."""
        try:
            while data := await source.read(_CHUNK):
                await self._passage(link)
                if to_server and self._losing is not None and self._losing(data):
                    self._losing, link.losing = None, True
                elif not to_server and link.losing:
                    self.lost += 1
                    link.reset()
                    return
                sink.write(data)
                await sink.drain()
            await self._passage(link)
            sink.write_eof()
        except OSError:
            link.reset()

    async def _passage(self, link: _Link) -> None:
        """Wait while nothing flows; for ever on a connection that was abandoned."""
        await self._flowing.wait()
        if link.abandoned:
            await asyncio.Event().wait()
