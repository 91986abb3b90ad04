"""Concurrent commands of one process share pipelines: fewer reads and writes when there is much to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

Command = tuple[str | bytes | int, ...]

#: Pipelines under way at once. While there are fewer, nobody waits for another's.
_AT_ONCE = 4
#: Callers in one pipeline at the most: a decision takes the server some 100 microseconds, and the first one's
#: reply is read when the last one's is written.
_TOGETHER = 32


class Pipelines:
    """Runs groups of commands, each group in its order and in one round trip. Lives on one loop.

    A caller that comes while `_AT_ONCE` pipelines are under way is sent with all others that come
    meanwhile: so at rest nobody waits, and under load a round trip serves many.
    """

    def __init__(self, redis: Redis) -> None:
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

    async def aclose(self) -> None:
        """Wait for what is under way."""
        while self._sending:
            await asyncio.wait(self._sending)

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
        return await pipeline.execute(raise_on_error=False)
