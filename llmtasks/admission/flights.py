"""The questions that this process leads, for others that follow (lua/flight.lua), and their leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from llmtasks import logs
from llmtasks.admission.connection import ended
from llmtasks.admission.scripts import Script

_log = logs.get("admission")

#: Seconds between two renewals: two may fail before a lease (LEASE in lua/flight.lua) ends.
RENEW_S = 3.0


class Flights:
    """Keeps the leases of all of them alive, in one round trip for all. Lives on the loop.

    Args:
        redis: The fleet's.
        renewal: The script.
        channels: What it is to know of the wake-up channels.
        key_of: The Redis key of a question's flight.
    """

    def __init__(
        self, redis: Redis, renewal: Script, channels: str, key_of: Callable[[str], str]
    ) -> None:
        self._redis = redis
        self._renewal = renewal
        self._channels = channels
        self._key_of = key_of
        self._led: dict[str, str] = {}
        self._under_way = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    def led(self, waiter: str, question: str) -> None:
        """The waiter leads this question from now on."""
        self._led[waiter] = question
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew_always())

    async def end(self, waiter: str) -> str | None:
        """Renew its lease no more; the question that it led, if it led one."""
        question = self._led.pop(waiter, None)
        if question is not None:
            # A renewal that arrives after its end would make it lead again, and nobody would know.
            async with self._under_way:
                pass
        return question

    async def aclose(self) -> None:
        """Let the leases run out."""
        if self._renewing is not None:
            await ended(self._renewing)

    async def _renew_always(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self.renew()
            except (RedisError, OSError) as error:
                logs.warning(_log, "flights-not-renewed", why=type(error).__name__)

    async def renew(self) -> None:
        """Renew all leases; forget those that another has taken over: whoever stored first has won."""
        async with self._under_way:
            led = dict(self._led)
            if not led:
                return
            replies = await self._send(led)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                await self._redis.script_load(self._renewal.text)
                replies = await self._send(led)
            for waiter, reply in zip(led, replies, strict=True):
                if reply == 0:
                    self._led.pop(waiter, None)

    async def _send(self, led: Mapping[str, str]) -> list[object]:
        pipeline = self._redis.pipeline(transaction=False)
        for waiter, question in led.items():
            key = self._key_of(question)
            pipeline.execute_command("EVALSHA", self._renewal.sha, 1, key, waiter, self._channels)
        return await pipeline.execute(raise_on_error=False)
