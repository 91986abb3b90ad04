"""Concurrent decisions share round trips, and each caller gets its own replies and its own errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import ResponseError
from support.cluster import Cluster
from support.valkey import Valkey, free_port

from llmtasks.admission import connect
from llmtasks.admission.pipelines import Command, Pipelines, ways
from llmtasks.settings import Batching

CALLERS = 200
#: Milliseconds that nobody waits in a test that can pass.
FOR_EVER = 1e9


def run(
    url: str,
    work: Callable[[Redis, Pipelines], Awaitable[None]],
    batching: Batching = Batching(),  # noqa: B008  # frozen
) -> None:
    async def body() -> None:
        redis = connect(url)
        pipelines = Pipelines(redis, batching)
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


@contextlib.asynccontextmanager
async def busy(redis: Redis, pipelines: Pipelines) -> AsyncIterator[None]:
    """As many round trips under way as there may be before callers wait for others."""
    held = [asyncio.create_task(pipelines.run([("BLPOP", f"held{n}", 0)])) for n in range(4)]
    while (await redis.info("clients"))["blocked_clients"] < len(held):  # noqa: ASYNC110  # the server's
        await asyncio.sleep(0)
    try:
        yield
    finally:
        for n in range(len(held)):
            await redis.rpush(f"held{n}", "go")
        await asyncio.gather(*held)


def test_nobody_waits_for_others_longer_than_is_set(valkey: Valkey) -> None:
    async def work(redis: Redis, pipelines: Pipelines) -> None:
        async with busy(redis, pipelines):
            for n in range(3):
                assert await pipelines.run([("ECHO", n)]) == [str(n).encode()]

    run(valkey.url, work, Batching(max_wait_ms=5))


def test_as_many_as_are_sent_together_wait_for_nobody(valkey: Valkey) -> None:
    async def work(redis: Redis, pipelines: Pipelines) -> None:
        async with busy(redis, pipelines):
            asked = [asyncio.create_task(pipelines.run([("ECHO", n)])) for n in range(11)]
            done = await asyncio.gather(*asked[:10])
            assert done == [[str(n).encode()] for n in range(10)]
            assert not asked[10].done()
        assert await asked[10] == [b"10"]

    run(valkey.url, work, Batching(batch_size=5, max_wait_ms=FOR_EVER))


def test_a_batch_size_of_one_shares_no_round_trip(valkey: Valkey) -> None:
    async def work(redis: Redis, pipelines: Pipelines) -> None:
        await asyncio.gather(*(pipelines.run([("PING",)]) for _ in range(CALLERS)))
        before = (await redis.info("stats"))["total_reads_processed"]
        await asyncio.gather(*(pipelines.run([("PING",)]) for _ in range(CALLERS)))
        after = (await redis.info("stats"))["total_reads_processed"]
        assert after - before >= CALLERS

    run(valkey.url, work, Batching(batch_size=1))


def test_what_cannot_be_sent_is_the_error_of_the_one_who_asked(valkey: Valkey) -> None:
    async def work(_redis: Redis, pipelines: Pipelines) -> None:
        wrong = {10: "\ud800", 40: None}
        asked = [pipelines.run([("ECHO", wrong.get(n, n))]) for n in range(60)]  # type: ignore[list-item]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        assert {n for n, reply in enumerate(replies) if isinstance(reply, Exception)} == {10, 40}
        assert all(replies[n] == [str(n).encode()] for n in range(60) if n not in wrong)

    run(valkey.url, work)


async def echoed_to_each(to: object, groups: list[list[str]]) -> None:
    """Each caller's replies are to its own commands, in their order."""
    commands: list[list[Command]] = [
        [("SET", f"{{{n}}}{i}", text, "GET") for i, text in enumerate(group)]
        + [("GET", f"{{{n}}}{i}") for i in range(len(group))]
        for n, group in enumerate(groups)
    ]
    replies = await asyncio.gather(*(to.run(one) for one in commands))  # type: ignore[attr-defined]
    for group, reply in zip(groups, replies, strict=True):
        assert reply[len(group) :] == [text.encode() for text in group]


GROUPS = st.lists(
    st.lists(st.text("ab\x00\r\n\u00e4", max_size=3), min_size=1, max_size=4), max_size=60
)
BATCHINGS = st.builds(
    Batching, batch_size=st.integers(1, 40), max_wait_ms=st.sampled_from([0.0, 0.1, 5.0])
)


def test_however_callers_are_put_together_each_gets_its_own(valkey: Valkey) -> None:
    @settings(max_examples=40, deadline=None)
    @given(groups=GROUPS, batching=BATCHINGS)
    def holds(groups: list[list[str]], batching: Batching) -> None:
        run(valkey.url, lambda _redis, pipelines: echoed_to_each(pipelines, groups), batching)

    holds()


@pytest.mark.parametrize("batching", [Batching(), Batching(batch_size=3, max_wait_ms=0)], ids=str)
def test_callers_of_a_cluster_are_put_together_likewise(
    cluster_node: Cluster, batching: Batching
) -> None:
    async def body() -> None:
        to = ways(connect(cluster_node.url, cluster=True), batching)
        try:
            await echoed_to_each(to, [[f"{n}a", f"{n}b"] for n in range(CALLERS)])
        finally:
            await to.aclose()

    asyncio.run(body())
