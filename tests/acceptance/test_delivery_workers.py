"""Workers that die, stall and are asked to stop: others go on, and nothing is paid twice without need."""

from __future__ import annotations

import signal
import time

import pytest
from support.delivery import (
    REDELIVERING,
    calls_by_question,
    events,
    full,
    note,
    resident_mb,
    rows,
    settled,
    short,
    slow,
    unacknowledged,
)
from support.stack import eventually, provider

#: Seconds after the lease in which an idle worker has taken over and finished.
TAKEOVER_S = 15.0


@pytest.fixture
def make(make_stack, sim):
    """An installation with one provider and these settings."""

    def made(**settings):
        return make_stack(providers=[provider(sim.openai_url)], settings=settings)

    return made


@pytest.mark.parametrize(("jobs", "lease_s"), [short(20, 2.0), full(200, 30.0)])
def test_an_idle_worker_finishes_the_jobs_of_the_only_busy_one(make, sim, jobs, lease_s):
    """All messages are in the dead one's hands, and the broker hands them out again after ten minutes."""
    stack = make(delivery={"lease_s": lease_s})
    sim.latency(600.0)
    stack.documents(jobs)
    busy = stack.worker(concurrency=jobs)
    batch = stack.submit("summarize", "--all")
    eventually(lambda: sim.stats()["in_flight"] == jobs, "all of it is in flight")
    idle = stack.worker(concurrency=jobs)
    assert unacknowledged(stack.broker_url) == jobs
    sim.latency(0.0)
    busy.kill()
    killed = time.monotonic()
    status = stack.finished(batch, timeout=lease_s + TAKEOVER_S)
    note(f"{jobs} jobs finished {time.monotonic() - killed:.1f} s after, lease {lease_s} s")
    assert (status["completed"], status["failed"]) == (jobs, 0)
    assert sim.stats()["answered"] == jobs
    assert set(calls_by_question(sim).values()) == {2}
    assert idle.running


@pytest.mark.parametrize(("lease_s", "call_s"), [slow(4.0, 20.0), full(60.0, 300.0)])
def test_a_call_of_five_leases_is_made_once_although_its_message_comes_again(
    make_stack, sim, lease_s, call_s
):
    stack = make_stack(
        providers=[provider(sim.openai_url, timeout_s=2 * call_s)],
        settings={"delivery": {"lease_s": lease_s}},
    )
    sim.latency(call_s)
    stack.documents(1)
    workers = [stack.worker(concurrency=2, launcher=REDELIVERING) for _ in range(2)]
    with events(stack.broker_url) as seen:
        batch = stack.submit("summarize", "--all")
        status = stack.finished(batch, timeout=call_s + 60.0)
        again = seen["task-received"]
    assert status["completed"] == 1
    assert sim.stats()["requests"] == 1
    assert again > 1, "the message came again, and its row was found taken"
    (job,) = rows(stack, "fence", "attempts", "crashes", batch_id=batch)
    assert tuple(job) == (1, 1, 0)
    assert not any("took-over" in worker.output() for worker in workers)
    settled(stack.broker_url)


@pytest.mark.chaos
def test_who_was_stopped_for_two_leases_commits_nothing_and_its_call_is_counted(make, sim):
    lease_s = 60.0
    stack = make(delivery={"lease_s": lease_s})
    sim.latency(30.0)
    stack.documents(1)
    zombie = stack.worker(concurrency=1)
    batch = stack.submit("summarize", "--all")
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    stack.freeze(zombie)
    stopped = time.monotonic()
    sim.latency(0.0)
    stack.worker(concurrency=1)
    assert stack.finished(batch, timeout=lease_s + TAKEOVER_S)["completed"] == 1
    eventually(
        lambda: time.monotonic() > stopped + 2 * lease_s, "two leases have passed", timeout=150.0
    )
    zombie.signal(signal.SIGCONT)
    eventually(lambda: "job-superseded" in zombie.output(), "the zombie noticed")
    (row,) = stack.results(batch)
    assert sim.stats()["answered"] == 2
    both = eventually(lambda: stack.calls(row["job_id"])[1:], "both calls are counted")
    note(f"{[(call.outcome, call.input_tokens) for call in both]}")


@pytest.mark.parametrize("jobs", [short(50), full(1_000)])
def test_sigterm_with_calls_in_flight_gives_all_of_it_back_within_ten_seconds(make, sim, jobs):
    drain_s = 1.0
    stack = make(worker={"drain_s": drain_s, "max_calls": jobs})
    sim.latency(600.0)
    stack.documents(jobs)
    batch = stack.submit("summarize", "--all")
    worker = stack.worker(concurrency=jobs)
    eventually(lambda: sim.stats()["in_flight"] == jobs, "all of it is in flight", timeout=300.0)
    note(f"{jobs} calls in flight in {resident_mb(worker.pid):.0f} MB")
    asked = time.monotonic()
    assert worker.terminate() == 0
    seconds = time.monotonic() - asked
    note(f"ended {seconds - drain_s:.1f} s after its drain")
    # At once: nothing has to run out, and the providers' connections are closed.
    assert stack.status(batch)["queued"] == jobs
    assert sim.stats()["in_flight"] == 0
    assert sim.stats()["disconnects"] == jobs
    assert seconds - drain_s <= 10.0
    assert {row.crashes for row in rows(stack, "crashes", batch_id=batch)} == {0}
    sim.latency(0.0)
    sim.reset()
    stack.configure(worker={"drain_s": 30.0})
    stack.worker(concurrency=min(jobs, 64))
    assert stack.finished(batch, timeout=300.0)["completed"] == jobs
    assert sim.stats()["answered"] == jobs


@pytest.mark.chaos
def test_workers_that_leave_under_load_one_after_the_other_lose_and_repeat_nothing(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)], database="postgresql")
    sim.latency(2.0)  # so that both leave with calls in flight
    jobs = len(stack.documents(100))
    leaving = [stack.worker(concurrency=8) for _ in range(2)]
    stack.worker(concurrency=8)
    batch = stack.submit("summarize", "--all")
    eventually(lambda: sim.stats()["in_flight"] > 16, "all of them are at work")
    for worker in leaving:
        assert worker.terminate() == 0
    assert stack.status(batch)["state"] == "running", "it happened under load"
    sim.latency(0.0)
    finished_once(stack, sim, batch, jobs)


@pytest.mark.chaos
def test_a_rolling_restart_under_load_loses_and_repeats_nothing(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)], database="postgresql")
    sim.latency(3.0)
    jobs = len(stack.documents(1_500))
    batch = stack.submit("summarize", "--all")
    workers = [stack.worker(concurrency=8) for _ in range(2)]
    for _ in range(6):
        done = stack.status(batch)["completed"]
        eventually(lambda done=done: stack.status(batch)["completed"] > done, "they are at work")
        workers.append(stack.worker(concurrency=8))
        assert workers.pop(0).terminate() == 0
    assert stack.status(batch)["state"] == "running", "it happened under load"
    sim.latency(0.0)
    finished_once(stack, sim, batch, jobs)


def finished_once(stack, sim, batch, jobs):
    """Every job has ended, by one call and one claim, and nothing is left in the broker."""
    assert stack.finished(batch, timeout=300.0)["completed"] == jobs
    assert sim.stats()["requests"] == sim.stats()["answered"] == jobs
    assert {row.attempts for row in rows(stack, "attempts", batch_id=batch)} == {1}
    settled(stack.broker_url)
