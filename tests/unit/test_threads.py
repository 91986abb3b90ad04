"""What lies between threads: the loop's answers, and publishing that never holds its caller long."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
import urllib.request

import pytest

from llmtasks import metrics
from llmtasks.celery_app import BrokerAway, Publisher
from llmtasks.loop import LoopThread


@pytest.fixture
def loop():
    thread = LoopThread()
    thread.start()
    yield thread
    thread.stop()


def test_a_cancelled_task_resolves_only_when_it_has_ended(loop):
    booked = threading.Event()
    started = threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            booked.set()

    running = loop.start_task(work())
    assert started.wait(5)
    running.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        running.future.result(5)
    assert booked.is_set()


def test_a_task_hands_over_its_result_and_its_error(loop):
    async def fail() -> None:
        raise KeyError("x")

    assert loop.start_task(asyncio.sleep(0, "done")).future.result(5) == "done"
    with pytest.raises(KeyError):
        loop.start_task(fail()).future.result(5)


def test_a_stuck_loop_is_noticed(loop):
    release = threading.Event()

    async def block() -> None:
        release.wait(10)

    assert loop.answers(5.0)
    loop.submit(block())
    assert not loop.answers(0.1)
    release.set()
    assert loop.answers(5.0)


def test_publishing_costs_a_bounded_time_and_recovers():
    publish = Publisher(timeout_s=0.1)
    release = threading.Event()
    with pytest.raises(BrokerAway):
        publish(lambda: release.wait(10))
    started = time.monotonic()
    for _ in range(1000):
        with pytest.raises(BrokerAway):
            publish(lambda: "refused at once")
    assert time.monotonic() - started < 50.0  # 1000 waits would be 100
    release.set()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert publish(lambda: "sent") == "sent"
        except BrokerAway:
            continue
        break
    assert publish(lambda: "sent again") == "sent again"


def test_a_refusing_broker_is_away_and_a_defect_is_not():
    publish = Publisher(timeout_s=5.0)

    def raising(error: Exception):
        def run() -> None:
            raise error

        return run

    with pytest.raises(BrokerAway):
        publish(raising(ConnectionRefusedError()))
    with pytest.raises(KeyError):
        publish(raising(KeyError("x")))


def test_two_exporters_of_a_host_take_two_ports():
    first = metrics.serve("127.0.0.1", 0)
    port = int(first.url.split(":")[2].split("/")[0])
    second = metrics.serve("127.0.0.1", port)
    try:
        assert first.url != second.url
        for exporter in (first, second):
            with urllib.request.urlopen(exporter.url, timeout=5) as answer:
                assert b"llm_cache_hits_total" in answer.read()
    finally:
        first.close()
        second.close()
    with pytest.raises(OSError, match=r"address|assign|known"):
        metrics.serve("203.0.113.1", 0)
