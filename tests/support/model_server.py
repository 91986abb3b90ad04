"""A scripted model server on the loopback, down to the bytes: answers, and every way to break one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Fault(Enum):
    """What goes wrong after the request was read."""

    NONE = "none"
    SILENCE = "silence"  # not a byte comes back
    STALL = "stall"  # half of the body, then nothing more
    CUT = "cut"  # half of the body, then an orderly end of the connection
    RESET = "reset"  # the connection is reset before a byte came back
    GARBAGE = "garbage"  # what comes back is not HTTP


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault = Fault.NONE


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ModelServer:
    """Answers requests with the scripted replies in turn, the last one again and again."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.received: list[Received] = []
        self.arrived = asyncio.Event()  # a request was read
        self.client_left = asyncio.Event()  # the client closed a connection that waited for more
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self._replies: deque[Reply] = deque([Reply()])

    def script(self, *replies: Reply) -> None:
        self._replies = deque(replies)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            while (request := await _read(reader)) is not None:
                self.received.append(request)
                self.arrived.set()
                reply = self._replies.popleft() if len(self._replies) > 1 else self._replies[0]
                if not await self._answer(reply, reader, writer):
                    break
        except ConnectionError:
            self.client_left.set()
        finally:
            self.open.discard(writer)
            writer.close()

    async def _answer(
        self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether the connection may be used again."""
        half = reply.body[: len(reply.body) // 2]
        match reply.fault:
            case Fault.NONE:
                writer.write(_head(reply) + reply.body)
                await writer.drain()
                return True
            case Fault.CUT:
                writer.write(_head(reply) + half)
                await writer.drain()
            case Fault.GARBAGE:
                writer.write(b"\x00\xff no HTTP at all\r\n\r\n")
                await writer.drain()
            case Fault.RESET:
                linger_not_at_all = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger_not_at_all
                )
                writer.transport.abort()
            case Fault.SILENCE | Fault.STALL:
                if reply.fault is Fault.STALL:
                    writer.write(_head(reply) + half)
                await reader.read(1)  # returns when the client closes
                self.client_left.set()
        return False


@asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    """A server on a free port of the loopback."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = ModelServer(listening.getsockname()[1])
    running = await asyncio.start_server(server.serve, sock=listening)
    try:
        yield server
    finally:
        running.close()
        # What the client keeps open would be left to the collector.
        for writer in list(server.open):
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, json.loads(body or b"{}"))


def _head(reply: Reply) -> bytes:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(reply.body)),
        **reply.headers,
    }
    lines = [f"HTTP/1.1 {reply.status} Said", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
