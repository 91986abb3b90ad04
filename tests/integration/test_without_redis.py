"""The fleet's Redis is gone, its broker is not: what was granted drains, then jobs hold or go on alone."""

from __future__ import annotations

import signal
import time

import pytest
from support.stack import Stack, eventually, provider
from support.usage import most_within

#: Calls per minute, and seconds of it at once: as many slots wait for their time as are granted ahead.
LIMIT = 240.0
BURST_S = 0.8
SLOTS = 24

#: Seconds that quota is promised ahead (lua/gcra.lua), and by which a call may be late (LATE_S, its way).
HORIZON_S = 5.0
LATE_S = 1.2

#: Seconds that a worker that is told to stop gives its calls.
DRAIN_S = 1.0

#: Seconds that it may take beyond that: what hangs is waited for, but not for ever.
CLOSE_S = 20.0

#: Seconds after its last answer until a process with a share of its own holds, and how large that is.
LOCAL_FOR_S = 9.0
SHARE = 0.5


@pytest.fixture
def start(make_stack, sim, own_valkey):
    """Start a worker that has a Redis apart from its broker, and a batch; their stack and ids."""

    def started(documents: int, **redis: float) -> tuple[Stack, object, str]:
        stack = make_stack(
            providers=[provider(sim.openai_url, requests_per_minute=LIMIT, burst_s=BURST_S)],
            settings={
                "redis": {"url": own_valkey.url, **redis},
                "worker": {"drain_s": DRAIN_S},
            },
        )
        stack.documents(documents)
        worker = stack.worker(concurrency=SLOTS)
        batch = stack.submit("summarize", "--all")
        eventually(lambda: stack.status(batch)["completed"] > 3, "it is at work")
        return stack, worker, batch

    return started


def arrivals(sim, since: float) -> list[float]:
    """When calls began, in seconds after a moment."""
    return sorted(line["at"] - since for line in sim.log() if line["at"] > since)


def passed(seconds: float, since: float) -> None:
    eventually(lambda: time.time() - since >= seconds, f"{seconds} s have passed")


def all_done_once(stack, batch, sim, documents: int) -> None:
    """Every job completed, at its first attempt, by one call and with one result."""
    status = stack.finished(batch)
    assert (status["completed"], status["failed"]) == (documents, 0)
    rows = stack.results(batch)
    assert len({row["job_id"] for row in rows}) == len(rows) == documents
    assert {stack.job(row["job_id"]).attempts for row in rows} == {1}
    assert sim.stats()["answered"] == documents


def test_what_was_granted_drains_then_jobs_hold_and_go_on_by_themselves(start, sim, own_valkey):
    stack, _, batch = start(36)
    own_valkey.stop()
    killed = time.time()
    passed(HORIZON_S + LATE_S + 0.3, killed)
    drained = arrivals(sim, killed)
    assert 5 <= len(drained) <= LIMIT / 60 * (HORIZON_S + BURST_S) + 1
    assert drained[-1] <= HORIZON_S + LATE_S
    assert stack.status(batch)["failed"] == 0
    own_valkey.start()
    all_done_once(stack, batch, sim, 36)


def test_with_a_share_of_its_own_a_worker_goes_on_at_that_pace_for_a_while(start, sim, own_valkey):
    stack, _, batch = start(48, local_share=SHARE, local_for_s=LOCAL_FOR_S)
    own_valkey.stop()
    killed = time.time()
    passed(LOCAL_FOR_S + 1.0, killed)
    calls = arrivals(sim, killed)
    alone = [at for at in calls if at > HORIZON_S + 0.1]
    assert len(alone) >= 3
    assert alone[-1] <= LOCAL_FOR_S + 0.2
    for window_s in (1.0, 2.0, 5.0):
        most = SHARE * LIMIT / 60 * (window_s + BURST_S)
        assert most_within([(at, 1.0) for at in alone], window_s) <= most + 1
        assert most_within([(at, 1.0) for at in calls], window_s) <= most / SHARE + 1
    assert stack.status(batch)["failed"] == 0
    own_valkey.start()
    all_done_once(stack, batch, sim, 48)


def test_a_redis_that_hangs_is_gone_and_the_worker_still_stops(start, sim, own_valkey):
    stack, worker, batch = start(32)
    own_valkey.signal(signal.SIGSTOP)
    stopped = time.time()
    try:
        passed(HORIZON_S + LATE_S + 0.3, stopped)
        drained = arrivals(sim, stopped)
        assert len(drained) >= 5
        assert drained[-1] <= HORIZON_S + LATE_S
        assert worker.terminate(timeout=DRAIN_S + CLOSE_S) == 0
    finally:
        own_valkey.signal(signal.SIGCONT)
    status = stack.status(batch)
    assert status["completed"] == sim.stats()["answered"]  # no answer waited for Redis in vain
    assert (status["queued"], status["failed"]) == (32 - status["completed"], 0)
