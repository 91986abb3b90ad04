"""The client to the fleet's Redis, and the one place where its errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff

from llmtasks.errors import AdmissionUnavailable

Client = Redis | RedisCluster

#: Commands of one process at the same time; each takes well under a millisecond of its connection.
_MAX_CONNECTIONS = 64
#: Seconds to wait for a free connection, which only a server that hangs makes long.
_POOL_TIMEOUT_S = 5.0

#: Seconds after which a Redis that hangs counts as gone: so long an answer waits to be booked, or a question
#: that is given up to be left.
HANGS_S = 2.0

_CONNECTION: dict[str, Any] = {
    "max_connections": _MAX_CONNECTIONS,
    "socket_timeout": 5.0,
    "socket_connect_timeout": 2.0,
    "health_check_interval": 30,
    # RESP3 would add two commands per connection and gives nothing that is used here.
    "protocol": 2,
}

#: Answers by which a server says that it is no use now, not that the command is wrong. Anything
#: else (an error in a script) is a fault of ours and must not look like an outage that will end.
_NOT_NOW = frozenset({"MISCONF", "BUSY", "NOREPLICAS", "UNKILLABLE", "NOTREADY"})
_NOT_NOW_TYPES = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterError,
    exceptions.AskError,  # and MOVED: its nodes do not agree on who has the slot
    exceptions.TryAgainError,
    exceptions.NoPermissionError,
)


@overload
def connect(url: str, *, cluster: Literal[False] = False) -> Redis: ...


@overload
def connect(url: str, *, cluster: bool) -> Client: ...


def connect(url: str, *, cluster: bool = False) -> Client:
    """A client for `Admission`, not yet connected. `redis://`, `rediss://` and `unix://` URLs.

    It repeats a command twice at most: scripts are safe to repeat, and an outage is soon known. Of
    a cluster the URL names any node; there `ClusterPipelines` repeats, since the client itself
    would throw away its connections to all nodes because of one.
    """
    if cluster:
        client = RedisCluster.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            # Whether a part serves alone is the servers' own setting.
            require_full_coverage=False,
            **_CONNECTION,
        )
        client.commands_parser = _FirstKey()  # type: ignore[assignment]
        return client
    pool = BlockingConnectionPool.from_url(
        url,
        timeout=_POOL_TIMEOUT_S,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        **_CONNECTION,
        **({} if url.startswith("unix:") else {"socket_keepalive": True}),
    )
    return Redis.from_pool(pool)


#: What a client raises when no server answers, or none has the slot: not all of a cluster's are RedisErrors.
AWAY = (exceptions.RedisError, exceptions.RedisClusterException, OSError, TimeoutError)


class _FirstKey:
    """Where a command has its key. The client's own way is to ask one certain node for a list of commands
    before anything else, so that no process could begin while that node is down.
    """

    async def initialize(self, _node: object) -> None:
        """Nothing is to be asked."""

    async def get_keys(self, *command: Any) -> tuple[Any, ...]:
        """The client knows those of scripts; all others that are used begin with theirs, but XREAD."""
        if command[0] == "XREAD":
            first = command.index(b"STREAMS") + 1
            return command[first : first + 1]
        return command[1:2]


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task that works with the client, until it has ended.

    Once may not be enough: a cancellation that arrives just when a command was sent is lost in
    Python 3.11 (`asyncio.wait_for`).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


def outage(error: Exception) -> str | None:
    """In a word, how the server is no use now; None if that is not what the error says."""
    if isinstance(error, exceptions.RedisError):
        code = str(error).split(" ", 1)[0]
        if code in _NOT_NOW:
            return code
    if isinstance(error, (*_NOT_NOW_TYPES, OSError)):
        return type(error).__name__
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Outages as `AdmissionUnavailable`; no command in its message: those hold answers."""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        said = outage(error)
        if said is None:
            raise
        raise AdmissionUnavailable(f"the fleet's Redis does not answer: {said}") from None
