"""Pieces of answers through a real Redis, and through a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support.cluster import Cluster
from support.valkey import RestartableValkey, Valkey

from llmtasks.admission import connect
from llmtasks.errors import ProviderUnavailable
from llmtasks.progress import Ended, Event, JobStream, Publisher, Reader, Reset, Sight, seen
from llmtasks.progress import publisher as publisher_module
from llmtasks.progress.publisher import key
from llmtasks.progress.reader import BEGINNING
from llmtasks.settings import Streams

pytestmark = pytest.mark.anyio

PATIENCE_S = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Place:
    """A Redis, and a prefix of the test's own."""

    url: str
    cluster: bool
    prefix: str

    def publisher(self, **keep: Any) -> Publisher:
        redis = connect(self.url, cluster=self.cluster)
        return Publisher(redis, prefix=self.prefix, keep=Streams(**keep))

    def reader(self) -> Reader:
        return Reader(connect(self.url, cluster=self.cluster), prefix=self.prefix)


@pytest.fixture(params=["server", "cluster"])
def place(request: pytest.FixtureRequest) -> Place:
    prefix = f"test-{uuid.uuid4().hex}"
    if request.param == "server":
        server: Valkey = request.getfixturevalue("valkey")
        return Place(server.url, cluster=False, prefix=prefix)
    node: Cluster = request.getfixturevalue("cluster_node")
    return Place(node.url, cluster=True, prefix=prefix)


@contextlib.asynccontextmanager
async def open_(place: Place, **keep: Any) -> AsyncIterator[tuple[Publisher, Reader]]:
    publisher, reader = place.publisher(**keep), place.reader()
    try:
        yield publisher, reader
    finally:
        await publisher.aclose()
        await reader.aclose()


def at_once(function: Callable[[], None]) -> None:
    function()


def stream(publisher: Publisher, job_id: str, fence: int = 1) -> JobStream:
    return publisher.of(job_id, fence, at_once)


async def watched(
    reader: Reader, job_id: str, after: str = BEGINNING, sight: Sight | None = None
) -> list[Event]:
    """What a reader is shown until the end."""
    sight, events = sight or Sight(), []
    async with (
        asyncio.timeout(PATIENCE_S),
        contextlib.aclosing(reader.follow(job_id, after)) as found,
    ):
        async for entries in found:
            for one in entries:
                sight, event = seen(sight, one)
                if event is not None:
                    events.append(event)
                if event == Ended():
                    return events
    raise AssertionError("streams have no end of their own")


def screen(events: list[Event]) -> str:
    text = ""
    for event in events:
        text = "" if isinstance(event, Reset) else text + getattr(event, "text", "")
    return text


async def test_what_is_written_is_shown_to_early_and_late_readers_alike(place: Place) -> None:
    async with open_(place) as (publisher, reader):
        early = asyncio.create_task(watched(reader, "job"))
        writing = stream(publisher, "job")
        writing.begin()
        for piece in ("Ein ", "schöner ", "Text 你好"):
            writing.text(piece)
            await asyncio.sleep(0)
        between = asyncio.create_task(watched(reader, "job"))
        writing.end()
        for events in (await early, await between, await watched(reader, "job")):
            assert screen(events) == "Ein schöner Text 你好"
            assert Reset() not in events


async def test_another_server_goes_on_after_the_last_entry_that_was_seen(place: Place) -> None:
    async with open_(place) as (publisher, one), open_(place) as (_, other):
        writing = stream(publisher, "job")
        writing.begin()
        writing.text("first, ")
        following = one.follow("job")
        seen_up_to, shown = "", ""
        async with asyncio.timeout(PATIENCE_S):
            while not shown:
                entries = await anext(following)
                seen_up_to, shown = entries[-1].id, "".join(entry.text for entry in entries)
        await following.aclose()
        writing.text("second")
        writing.end()
        last = await other.find("job", seen_up_to)
        assert last is not None
        assert shown == "first, "
        assert (
            screen(await watched(other, "job", seen_up_to)) == ""
        )  # without a sight: a piece is missing
        from_there = Sight(fence=last.fence, heard=last.offset + len(last.text))
        assert screen(await watched(other, "job", seen_up_to, from_there)) == "second"


@pytest.mark.parametrize("wrong", ["x", "", "5-5", "99999999999999999999999-1"])
async def test_an_entry_that_is_not_there_is_none(place: Place, wrong: str) -> None:
    async with open_(place) as (publisher, reader):
        stream(publisher, "job").begin()
        assert await reader.find("job", wrong) is None


async def test_many_streams_are_followed_at_once_and_none_hears_another(place: Place) -> None:
    async with open_(place) as (publisher, reader):
        watching = [asyncio.create_task(watched(reader, f"job-{i}")) for i in range(50)]
        streams = [stream(publisher, f"job-{i}") for i in range(50)]
        for number, one in enumerate(streams):
            one.begin()
            one.text(f"text {number}, ")
        for number, one in enumerate(streams):
            one.text(f"more {number}")
            one.end()
        for number, events in enumerate(await asyncio.gather(*watching)):
            assert screen(events) == f"text {number}, more {number}"
        assert not reader._followed, "who has left costs nothing"


async def test_a_call_that_broke_begins_anew(place: Place) -> None:
    async with open_(place) as (publisher, reader):
        writing = stream(publisher, "job")
        writing.begin()
        writing.text("lost")
        writing.again(ProviderUnavailable("broke off", provider="a"))
        writing.text("whole")
        writing.end()
        events = await watched(reader, "job")
        assert Reset() in events
        assert screen(events) == "whole"


async def test_a_stream_is_capped_and_its_late_reader_is_not_shown_a_part_as_the_whole(
    place: Place,
) -> None:
    async with open_(place, max_entries=10) as (publisher, reader):
        writing = stream(publisher, "job")
        writing.begin()
        for number in range(600):  # Redis cuts whole nodes of about a hundred
            writing.text(f"{number} ")
            await publisher._writing
        writing.end()
        assert screen(await watched(reader, "job")) == ""


async def test_a_piece_that_found_no_room_leaves_a_hole_that_its_readers_see(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "MAX_WAITING", 6)
    async with open_(place) as (publisher, reader):
        writing = stream(publisher, "job")
        writing.begin()
        writing.text("abcd")
        writing.text("MISSING")
        writing.text("ef")
        writing.end()
        assert screen(await watched(reader, "job")) == ""


async def test_what_somebody_else_wrote_there_stops_no_reader(place: Place) -> None:
    async with open_(place) as (publisher, reader):
        await publisher._redis.xadd(key(place.prefix, "job"), {"kind": "nothing of ours"})
        watching = asyncio.create_task(watched(reader, "job"))
        writing = stream(publisher, "job")
        writing.begin()
        writing.text("text")
        writing.end()
        assert screen(await watching) == "text"


async def test_a_stream_runs_out(place: Place) -> None:
    async with open_(place, keep_s=30) as (publisher, _):
        stream(publisher, "job").begin()
        await publisher._writing
        left = await publisher._redis.pttl(key(place.prefix, "job"))
        assert 0 < left <= 30_000


async def test_without_redis_nothing_fails_and_afterwards_readers_hear_again(
    own_valkey: RestartableValkey,
) -> None:
    place = Place(own_valkey.url, cluster=False, prefix="test")
    async with open_(place) as (publisher, reader):
        watching = asyncio.create_task(watched(reader, "job"))
        writing = stream(publisher, "job")
        writing.begin()
        await publisher._writing
        own_valkey.stop()
        writing.text("unheard ")
        await publisher._writing
        own_valkey.start()
        writing.begin()
        writing.text("heard")
        writing.end()
        assert screen(await watching) == "heard"
