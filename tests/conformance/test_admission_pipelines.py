"""Concurrent decisions share round trips, and each caller gets its own replies and its own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import ResponseError
from support.valkey import Valkey, free_port

from llmtasks.admission import connect
from llmtasks.admission.pipelines import Pipelines

CALLERS = 200


def run(url: str, work: Callable[[Redis, Pipelines], Awaitable[None]]) -> None:
    async def body() -> None:
        redis = connect(url)
        pipelines = Pipelines(redis)
        try:
            await work(redis, pipelines)
        finally:
            await pipelines.aclose()
            await redis.aclose()

    asyncio.run(body())


def test_each_of_many_callers_gets_its_own_replies(valkey: Valkey) -> None:
    async def work(_redis: Redis, pipelines: Pipelines) -> None:
        asked = [pipelines.run([("ECHO", f"a{n}"), ("ECHO", f"b{n}")]) for n in range(CALLERS)]
        replies = await asyncio.gather(*asked)
        assert replies == [[f"a{n}".encode(), f"b{n}".encode()] for n in range(CALLERS)]

    run(valkey.url, work)


def test_many_callers_at_once_take_few_reads_of_the_server(valkey: Valkey) -> None:
    async def work(redis: Redis, pipelines: Pipelines) -> None:
        await asyncio.gather(*(pipelines.run([("PING",)]) for _ in range(CALLERS)))
        before = (await redis.info("stats"))["total_reads_processed"]
        await asyncio.gather(*(pipelines.run([("PING",)]) for _ in range(CALLERS)))
        after = (await redis.info("stats"))["total_reads_processed"]
        assert after - before <= CALLERS / 8

    run(valkey.url, work)


def test_what_the_server_refuses_concerns_the_one_who_asked(valkey: Valkey) -> None:
    async def work(_redis: Redis, pipelines: Pipelines) -> None:
        asked = [
            pipelines.run([("EVALSHA", "0" * 40, 0)] if n % 3 == 0 else [("ECHO", n)])
            for n in range(60)
        ]
        for n, (reply,) in enumerate(await asyncio.gather(*asked)):
            if n % 3 == 0:
                assert isinstance(reply, ResponseError)
            else:
                assert reply == str(n).encode()

    run(valkey.url, work)


def test_a_caller_that_gives_up_takes_nobody_with_it(valkey: Valkey) -> None:
    async def work(_redis: Redis, pipelines: Pipelines) -> None:
        asked = [asyncio.create_task(pipelines.run([("ECHO", n)])) for n in range(60)]
        await asyncio.sleep(0)
        for given_up in asked[::2]:
            given_up.cancel()
        replies = await asyncio.gather(*asked, return_exceptions=True)
        assert replies[1::2] == [[str(n).encode()] for n in range(1, 60, 2)]
        assert all(isinstance(reply, asyncio.CancelledError) for reply in replies[::2])
        assert await pipelines.run([("ECHO", "after")]) == [b"after"]

    run(valkey.url, work)


def test_without_a_server_everybody_is_told_and_nobody_hangs() -> None:
    async def work(_redis: Redis, pipelines: Pipelines) -> None:
        asked = [pipelines.run([("PING",)]) for _ in range(60)]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(reply, GoneError | OSError) for reply in replies)
        with pytest.raises((GoneError, OSError)):
            await pipelines.run([("PING",)])

    run(f"redis://127.0.0.1:{free_port()}/0", work)
