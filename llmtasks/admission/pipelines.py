"""The ways of commands to one server, or to those of a cluster.

Concurrent commands of one process share pipelines: fewer reads and writes when there is much to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio import RedisCluster
from redis.asyncio.client import PubSub
from redis.exceptions import (
    ClusterDownError,
    ClusterError,
    DataError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import TimeoutError as SilentError

from llmtasks.admission.connection import Client, translated
from llmtasks.admission.scripts import Call
from llmtasks.settings import Batching

Command = tuple[str | bytes | int, ...]

#: Pipelines under way at once. While there are fewer, nobody waits for another's.
_AT_ONCE = 4
#: Under way at the most, each on a connection of its own: half of those that a process has, since leases are
#: renewed on the same ones. Beyond that callers wait: the server is behind, and more to do would not help it.
_AT_MOST = 32

#: Seconds before commands that a cluster's node did not answer are sent again, to whoever has their slot by
#: then: enough for a broken connection. Taking over from a dead node needs longer than a caller should wait.
_PAUSES_S = (0.05, 0.25)

_NO_ANSWER = (GoneError, SilentError, ClusterDownError, OSError)


class Ways(Protocol):
    """To the fleet's Redis, whatever it is."""

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies; what a server refused is its error, not raised. Those of one slot in their order."""

    async def teach(self, scripts: Iterable[str]) -> None:
        """Make scripts known wherever they may be called."""

    async def subscription(self) -> PubSub:
        """A new one, which hears what any script publishes."""

    async def aclose(self) -> None:
        """Wait for what is under way, and close the connections."""


def ways(redis: Client, batching: Batching | None = None) -> Ways:
    """Those that fit the client."""
    batching = batching or Batching()
    if isinstance(redis, RedisCluster):
        return ClusterPipelines(redis, batching)
    return Pipelines(redis, batching)


async def ask(to: Ways, steps: Sequence[Call | Command]) -> list[Any]:
    """The replies to scripts and commands. Servers that do not know a script are taught it.

    Raises:
        RedisError, OSError: no server answers.
    """
    commands = [step.command if isinstance(step, Call) else step for step in steps]
    replies = await to.run(commands)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        await to.teach({step.script.text for step in steps if isinstance(step, Call)})
        replies = await to.run(commands)
    return replies


async def told(to: Ways, *steps: Call | Command) -> list[Any]:
    """The replies, none of which is an error.

    Raises:
        AdmissionUnavailable: one of them is, or no server answers.
    """
    with translated():
        replies = await ask(to, steps)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
    return replies


@dataclass(frozen=True, slots=True)
class _Asked:
    """A caller that waits for others, until `due` on the loop's clock at the latest."""

    commands: Sequence[Command]
    replies: asyncio.Future[list[Any]]
    due: float


class Pipelines:
    """Runs groups of commands, each group in its order and in one round trip. Lives on one loop.

    A caller that comes while `_AT_ONCE` pipelines are under way is sent with others that come meanwhile: when
    one of those is back, `batch_size` callers are together, or the first of them has waited `max_wait_ms`. So
    at rest nobody waits, and under load a round trip serves many.
    """

    def __init__(self, redis: Client, batching: Batching) -> None:
        self._redis = redis
        self._together = batching.batch_size
        self._wait_s = batching.max_wait_ms / 1000
        self._under_way = 0
        self._asked: list[_Asked] = []
        self._clock: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies; one that the server refused is its error, not raised.

        Raises:
            RedisError, OSError: the server does not answer.
        """
        if self._under_way >= _AT_ONCE:
            return await self._with_others(commands)
        self._under_way += 1
        try:
            return await self._execute(commands)
        finally:
            self._under_way -= 1
            self._send_asked()

    async def _with_others(self, commands: Sequence[Command]) -> list[Any]:
        loop = asyncio.get_running_loop()
        asked = _Asked(commands, loop.create_future(), loop.time() + self._wait_s)
        self._asked.append(asked)
        self._send_asked()
        return await asked.replies

    async def teach(self, scripts: Iterable[str]) -> None:
        """Make scripts known to the server."""
        for text in scripts:
            await self._redis.script_load(text)

    async def subscription(self) -> PubSub:
        """A new one."""
        return self._redis.pubsub()

    async def ended(self) -> None:
        """Wait for what is under way."""
        while self._sending:
            await asyncio.wait(self._sending)
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    async def aclose(self) -> None:
        """Wait for what is under way, and close the connections."""
        await self.ended()
        await self._redis.aclose()

    def _send_asked(self) -> None:
        """Send those who need not wait longer; nobody's own task: none can be cancelled by another."""
        while self._asked and self._may_send():
            together, self._asked = self._asked[: self._together], self._asked[self._together :]
            self._under_way += 1
            sending = asyncio.get_running_loop().create_task(self._send(together))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
        if self._asked and self._clock is None and self._under_way < _AT_MOST:
            self._clock = asyncio.get_running_loop().call_at(self._asked[0].due, self._ring)

    def _may_send(self) -> bool:
        if self._under_way < _AT_ONCE:
            return True
        full = len(self._asked) >= self._together
        return self._under_way < _AT_MOST and (
            full or asyncio.get_running_loop().time() >= self._asked[0].due
        )

    def _ring(self) -> None:
        """Somebody may have waited long enough."""
        self._clock = None
        self._send_asked()

    async def _send(self, together: Sequence[_Asked]) -> None:
        try:
            await self._answer(together)
        finally:
            self._under_way -= 1
            self._send_asked()

    async def _answer(self, together: Sequence[_Asked]) -> None:
        """Give each caller its replies, or the error of them all."""
        try:
            replies = await self._execute([one for asked in together for one in asked.commands])
        except (DataError, ValueError, TypeError) as error:  # nothing was sent: it cannot be packed
            if len(together) == 1:
                _refuse(together, error)
                return
            for asked in together:
                await self._answer([asked])
        except Exception as error:  # noqa: BLE001  # each of them raises it
            _refuse(together, error)
        else:
            first = 0
            for asked in together:
                last = first + len(asked.commands)
                if not asked.replies.done():
                    asked.replies.set_result(replies[first:last])
                first = last

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        with _understood():
            return await pipeline.execute(raise_on_error=False)


class ClusterPipelines:
    """The same for a cluster: what belongs to one node goes there in one round trip, to several at once.

    A node that does not answer fails its own commands, and no others.
    """

    def __init__(self, cluster: RedisCluster, batching: Batching) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Pipelines] = defaultdict(lambda: Pipelines(cluster, batching))

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies in the order of the commands; what nobody answered is the error.

        Raises:
            RedisError: no node answers.
        """
        replies: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        for pause in (*_PAUSES_S, None):
            with _understood():
                await self._cluster.initialize()
            groups = self._by_node(commands, left, replies)
            await asyncio.gather(
                *(self._send(node, commands, group, replies) for node, group in groups.items())
            )
            left = [index for index in left if isinstance(replies[index], _NO_ANSWER)]
            if not left or pause is None:
                break
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            failed = next((node for node, group in groups.items() if left[0] in group), None)
            # If nobody knows better, what was known is tried again.
            with contextlib.suppress(RedisError, RedisClusterException, OSError):
                await self._cluster.nodes_manager.initialize(last_failed_node_name=failed)
        return replies

    def _by_node(
        self, commands: Sequence[Command], which: Sequence[int], replies: list[Any]
    ) -> dict[str, list[int]]:
        """Indexes of commands by the name of the node that has their keys; that none has is a reply."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index in which:
            try:
                node = self._cluster.get_node_from_key(str(_key_of(commands[index])))
            except SlotNotCoveredError:
                node = None
            if node is None:
                replies[index] = ClusterDownError("CLUSTERDOWN no node serves the slot")
            else:
                groups[node.name].append(index)
        return groups

    async def _send(
        self, node: str, commands: Sequence[Command], group: Sequence[int], replies: list[Any]
    ) -> None:
        """Ask one node; what goes wrong is the reply to all of its commands."""
        try:
            found = await self._nodes[node].run([commands[index] for index in group])
        except (RedisError, OSError) as error:
            found = [error] * len(group)
        for index, reply in zip(group, found, strict=True):
            replies[index] = reply

    async def teach(self, scripts: Iterable[str]) -> None:
        """Make scripts known to every node that answers: a slot may be moved to any of them."""
        loading = [
            self._cluster.execute_command("SCRIPT LOAD", text, target_nodes=node)
            for node in self._cluster.get_primaries()
            for text in scripts
        ]
        await asyncio.gather(*loading, return_exceptions=True)

    async def subscription(self) -> PubSub:
        """A new one at any of the nodes: each hears all, and the next one may be at another."""
        with _understood():
            await self._cluster.initialize()
        return self._cluster.pubsub(node=random.choice(self._cluster.get_primaries()))

    async def aclose(self) -> None:
        """Wait for what is under way, and close the connections."""
        for node in self._nodes.values():
            await node.ended()
        await self._cluster.aclose()


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """That no node answers, or none has a slot, is an error like others of the client's."""
    try:
        yield
    except RedisClusterException as error:
        raise ClusterError(type(error).__name__) from None


def _refuse(together: Sequence[_Asked], error: Exception) -> None:
    for asked in together:
        if not asked.replies.done():
            asked.replies.set_exception(error)


def _key_of(command: Command) -> str | bytes | int:
    """The first key, which tells where a command belongs."""
    return command[3] if command[0] == "EVALSHA" else command[1]
