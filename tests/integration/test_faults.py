"""When something breaks: nothing lost, one result, nothing paid twice beyond what was in flight."""

from __future__ import annotations

import signal

import pytest
from support.stack import eventually, provider

#: A shorter silence of a worker, for tests that wait for its end.
SOON = {"delivery": {"lease_s": 2.0}}


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)])


def arrivals(sim) -> list[float]:
    return sorted(line["at"] for line in sim.log())


def test_killed_workers_lose_nothing_and_repeat_only_what_was_in_flight(
    make_stack, sim, own_valkey
):
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey, settings=SOON)
    sim.latency(4.0)  # until both victims are dead, so that they die with calls in flight
    stack.documents(120)
    survivor = stack.worker(concurrency=10)
    victims = [stack.worker(concurrency=20) for _ in range(2)]
    batch = stack.submit("summarize", "--all")
    for victim, others_hold in zip(victims, (10 + 20, 10), strict=True):
        eventually(
            lambda held=others_hold: sim.stats()["in_flight"] > held, "the victim is at work, too"
        )
        victim.kill()
    own_valkey.flush()
    sim.latency(0.1)
    status = stack.finished(batch)
    assert (status["state"], status["completed"]) == ("completed", 120)
    rows = stack.results(batch)
    assert len({row["job_id"] for row in rows}) == 120
    assert 120 < sim.stats()["requests"] <= 120 + 2 * 20
    assert survivor.terminate() == 0


def test_a_get_is_answered_after_a_takeover(stack, sim):
    stack.configure(**SOON)
    sim.latency(3.0)
    victim = stack.worker(concurrency=2)
    stack.script(
        """
        from llmtasks import add_document, process_document
        add_document("Taken over, a text.", "d")
        process_document.apply_async(("d", "summarize"), task_id="taken")
        """
    )
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    victim.kill()
    sim.latency(0.0)
    stack.worker()
    got = stack.script(
        """
        import json
        from llmtasks.celery_app import app
        print(json.dumps(app.AsyncResult("taken").get(timeout=60)))
        """
    )
    assert (got["status"], got["job_id"]) == ("completed", "taken")


@pytest.mark.parametrize(("seconds", "parked"), [(2, False), (6, True)])
def test_nobody_calls_before_retry_after_and_no_attempt_is_spent(stack, sim, seconds, parked):
    """A short pause the job sits out in its slot, for one longer than 5 s it is parked; both obey."""
    first, *others = stack.documents(6)
    for _ in range(2):
        stack.worker(concurrency=4)
    sim.faults(kind="429", next=1, retry_after=seconds)
    refused = stack.submit("summarize", first)
    eventually(lambda: sim.stats()["by_status"].get("429"), "the provider has refused")
    rest = stack.submit("summarize", *others)  # which both workers would begin at once
    assert [stack.finished(batch)["completed"] for batch in (refused, rest)] == [1, 5]
    (row,) = stack.results(refused)
    assert (stack.job(row["job_id"]).deferrals > 0) == parked
    refusal, *later = arrivals(sim)
    assert len(later) == 6
    assert min(later) - refusal >= seconds - 0.05
    rows = [row, *stack.results(rest)]
    assert [stack.job(row["job_id"]).attempts for row in rows] == [1] * 6


def test_transient_errors_back_off_and_end_in_a_typed_error(make_stack, sim):
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        settings={"retry": {"max_attempts": 3, "base_s": 0.05}},
    )
    stack.documents(2)
    sim.faults({"kind": "500", "match": "doc-00000", "rate": 1.0})
    stack.worker(concurrency=2)
    batch = stack.submit("summarize", "--all")
    status = stack.finished(batch)
    assert (status["state"], status["completed"], status["failed"]) == ("partial", 1, 1)
    failed = next(row for row in stack.results(batch) if row["state"] == "failed")
    assert failed["error"]["type"] == "AttemptsExhausted"
    assert "ProviderUnavailable" in failed["error"]["message"]
    assert sim.stats()["by_status"]["500"] == 3


@pytest.mark.parametrize(
    ("fault", "times", "error"),
    [
        ("length", 2, "OutputTruncated"),  # it is asked for once more, with more room
        ("refusal", 1, "OutputRefused"),
        ("content_filter", 1, "OutputRefused"),
    ],
)
def test_an_answer_that_is_cut_or_refused_is_never_a_success(stack, sim, fault, times, error):
    stack.documents(1)
    sim.faults(kind=fault, next=times)
    stack.worker()
    batch = stack.submit("summarize", "--all")
    assert stack.finished(batch)["failed"] == 1
    (row,) = stack.results(batch)
    assert row["error"]["type"] == error
    assert row["output"] is None
    # It was paid, and that is counted; it is in no cache, so a retry asks again.
    assert stack.status(batch)["usage"]["output_tokens"] > 0
    stack.inside("retry", batch)
    assert stack.finished(batch)["completed"] == 1


def test_sigterm_drains_and_the_rest_is_done_elsewhere(stack, sim):
    sim.latency(0.5)
    stack.documents(40)
    batch = stack.submit("summarize", "--all")
    first = stack.worker(concurrency=8)
    eventually(lambda: stack.status(batch)["completed"] >= 8, "it is at work")
    assert first.terminate() == 0
    answered = sim.stats()["answered"]
    status = stack.status(batch)
    assert status["running"] == 0
    assert status["completed"] == answered  # calls in flight ended, none was thrown away
    stack.worker(concurrency=8)
    assert stack.finished(batch)["completed"] == 40
    assert sim.stats()["answered"] == 40


def test_a_hanging_call_does_not_outlive_the_drain(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)], settings={"worker": {"drain_s": 1.0}})
    stack.documents(1)
    sim.faults(kind="hang", next=1)
    batch = stack.submit("summarize", "--all")
    worker = stack.worker()
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call hangs")
    assert worker.terminate(timeout=20.0) == 0
    assert stack.status(batch)["queued"] == 1
    stack.worker()
    assert stack.finished(batch)["completed"] == 1


def test_a_stopped_worker_cannot_commit_what_was_taken_from_it(stack, sim):
    stack.configure(**SOON)
    sim.latency(2.0)
    stack.documents(1)
    zombie = stack.worker(concurrency=1)
    batch = stack.submit("summarize", "--all")
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    stack.freeze(zombie)
    sim.latency(0.0)
    stack.worker(concurrency=1)
    assert stack.finished(batch)["completed"] == 1
    zombie.signal(signal.SIGCONT)
    eventually(lambda: "job-superseded" in zombie.output(), "the zombie noticed")
    assert len(stack.results(batch)) == 1
    assert sim.stats()["answered"] == 2


def test_cancel_stops_queued_and_running_jobs(stack, sim):
    sim.latency(20.0)
    stack.documents(10)
    batch = stack.submit("summarize", "--all")
    stack.worker(concurrency=2)
    eventually(lambda: sim.stats()["in_flight"] == 2, "two are in flight")
    assert stack.json("cancel", batch, inside=True)["jobs"] == 10
    assert stack.status(batch)["state"] == "cancelled"
    eventually(lambda: sim.stats()["in_flight"] == 0, "calls in flight were given up")
    sim.latency(0.0)
    stack.inside("retry", batch)
    assert stack.finished(batch)["completed"] == 10


def test_without_redis_jobs_hold_and_go_on_by_themselves(make_stack, sim, own_valkey):
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
    stack.documents(30)
    sim.latency(0.2)
    stack.worker(concurrency=4)
    batch = stack.submit("summarize", "--all")
    eventually(lambda: stack.status(batch)["completed"] > 3, "it is at work")
    own_valkey.stop()
    eventually(lambda: sim.stats()["in_flight"] == 0, "outstanding grants drain")
    own_valkey.start()
    status = stack.finished(batch)
    assert (status["completed"], status["failed"]) == (30, 0)
    assert sim.stats()["answered"] == 30


def test_a_poisonous_document_fails_after_three_dead_workers(stack, sim):
    stack.configure(**SOON)
    sim.faults(kind="hang", rate=1.0)
    stack.documents(1)
    batch = stack.submit("summarize", "--all")
    for _ in range(3):
        worker = stack.worker(concurrency=1)
        eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
        worker.kill()
    stack.worker(concurrency=1)
    assert stack.finished(batch)["failed"] == 1
    (row,) = stack.results(batch)
    assert row["error"]["type"] == "WorkerLost"
