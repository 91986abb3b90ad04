"""The ways of commands to one server, or to those of a cluster.

Concurrent commands of one process share pipelines: fewer reads and writes when there is much to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from redis.asyncio import RedisCluster
from redis.asyncio.client import PubSub
from redis.exceptions import (
    ClusterDownError,
    ClusterError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import TimeoutError as SilentError

from llmtasks.admission.connection import Client, translated
from llmtasks.admission.scripts import Call

Command = tuple[str | bytes | int, ...]

#: Pipelines under way at once. While there are fewer, nobody waits for another's.
_AT_ONCE = 4
#: Callers in one pipeline at the most: a decision takes the server some 100 microseconds, and the first one's
#: reply is read when the last one's is written.
_TOGETHER = 32

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


def ways(redis: Client) -> Ways:
    """Those that fit the client."""
    return ClusterPipelines(redis) if isinstance(redis, RedisCluster) else Pipelines(redis)


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


class Pipelines:
    """Runs groups of commands, each group in its order and in one round trip. Lives on one loop.

    A caller that comes while `_AT_ONCE` pipelines are under way is sent with all others that come
    meanwhile: so at rest nobody waits, and under load a round trip serves many.
    """

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._under_way = 0
        self._asked: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies; one that the server refused is its error, not raised.

        Raises:
            RedisError, OSError: the server does not answer.
        """
        if self._under_way >= _AT_ONCE:
            asked: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
            self._asked.append((commands, asked))
            return await asked
        self._under_way += 1
        try:
            return await self._execute(commands)
        finally:
            self._under_way -= 1
            self._send_asked()

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

    async def aclose(self) -> None:
        """Wait for what is under way, and close the connections."""
        await self.ended()
        await self._redis.aclose()

    def _send_asked(self) -> None:
        """Send those who came meanwhile; nobody's own task, so that none can be cancelled by another."""
        while self._asked and self._under_way < _AT_ONCE:
            together, self._asked = self._asked[:_TOGETHER], self._asked[_TOGETHER:]
            self._under_way += 1
            sending = asyncio.get_running_loop().create_task(self._send(together))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def _send(
        self, together: Sequence[tuple[Sequence[Command], asyncio.Future[list[Any]]]]
    ) -> None:
        try:
            replies = await self._execute([one for commands, _ in together for one in commands])
        except (RedisError, OSError, TimeoutError) as error:
            for _, asked in together:
                if not asked.done():
                    asked.set_exception(error)
        else:
            first = 0
            for commands, asked in together:
                last = first + len(commands)
                if not asked.done():
                    asked.set_result(replies[first:last])
                first = last
        finally:
            self._under_way -= 1
            self._send_asked()

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

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Pipelines] = defaultdict(lambda: Pipelines(cluster))

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


def _key_of(command: Command) -> str | bytes | int:
    """The first key, which tells where a command belongs."""
    return command[3] if command[0] == "EVALSHA" else command[1]
