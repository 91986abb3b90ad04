"""Providers that refuse for minutes or hang, and a worker that is full of calls: nobody else is stopped."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from support.delivery import events, full, note, resident_mb, rows, settled, slow, unacknowledged
from support.stack import eventually, provider

#: Summaries go to a provider that refuses, entities to one that is well.
APART = {
    "tasks.summarize": {"providers": ["refusing"]},
    "tasks.extract": {"providers": ["well"]},
}

HEALTHY = """
import sys
from llmtasks import process_document
for line in sys.stdin:
    print(process_document.delay(line.strip(), "extract", fresh=True).id, flush=True)
"""


@pytest.mark.parametrize(
    ("jobs", "seconds", "retry_after", "within_s"),
    [slow(200, 10.0, 6.0, 3.0), full(5_000, 600.0, 30.0, 1.0)],
)
def test_a_storm_of_refusals_fails_no_job_and_delays_no_other_provider(
    make_stack, sim, jobs, seconds, retry_after, within_s
):
    concurrency = 32
    stack = make_stack(
        providers=[
            provider(sim.openai_url, "refusing", requests_per_minute=6_000),
            provider(sim.openai_url, "well"),
        ],
        settings=APART,
    )
    sim.faults(kind="429", model="model-refusing", retry_after=retry_after)
    ids = stack.documents(jobs)
    worker = stack.worker(concurrency=concurrency)
    batch = stack.submit("summarize", "--all")
    deliver = stack.talk(HEALTHY)
    deliver(ids[0])
    eventually(lambda: sim.stats()["by_status"].get("429"), "the storm has begun")
    begun = time.monotonic()
    memory, held, sent = [resident_mb(worker.pid)], [], []
    while time.monotonic() < begun + seconds:
        sent.append(deliver(ids[len(sent) % jobs]).strip())
        held.append(unacknowledged(stack.broker_url))
        memory.append(resident_mb(worker.pid))
        time.sleep(0.2)  # the pace of who asks, not a wait for anything
    refused = sim.stats()["by_status"]["429"]
    eventually(
        lambda: len(rows(stack, "job_id", task_type="extract", state="completed")) == len(sent) + 1,
        "all of the others are done",
    )
    waits = sorted(
        row.claimed_at - row.created_at
        for row in rows(stack, "claimed_at", "created_at", task_type="extract")
    )
    note(
        f"{len(sent)} of the other provider waited {waits[len(waits) // 2]:.2f} s (median),"
        f" {waits[-1]:.2f} s (most); {refused} refusals, {max(held)} unacknowledged,"
        f" {memory[len(memory) // 4]:.0f} -> {memory[-1]:.0f} MB"
    )
    assert waits[-1] <= within_s
    assert max(held) <= concurrency
    assert memory[-1] <= 1.1 * memory[len(memory) // 4] + 5
    assert stack.status(batch)["failed"] == 0
    sim.no_faults()
    calm = time.monotonic()
    assert stack.finished(batch, timeout=retry_after + 300.0)["completed"] == jobs
    note(f"{jobs} jobs were done {time.monotonic() - calm:.1f} s after the storm")
    assert {row.attempts for row in rows(stack, "attempts", batch_id=batch)} == {1}
    paid = Counter(line["prompt_sha256"] for line in answered(sim, "refusing", 0.0))
    assert (len(paid), set(paid.values())) == (jobs, {1})
    settled(stack.broker_url)


@pytest.mark.parametrize(
    ("calls", "call_s", "rounds"),
    [slow(48, 10.0, 2), full(1_000, 30.0, 11), full(1_000, 20.0, 16)],
)
def test_one_process_holds_all_the_calls_it_may_and_loses_no_event(
    make_stack, sim, calls, call_s, rounds
):
    """Its slots and its calls are as many; what occupies them is the provider's own count.

    A thousand calls of 30 s are 33 jobs a second, of 20 s 50, of one process that shares two cores with its
    provider.
    """
    stack = make_stack(
        providers=[provider(sim.openai_url)], settings={"worker": {"max_calls": calls}}
    )
    sim.latency(call_s)
    jobs = len(stack.documents(calls * rounds))
    worker = stack.worker(concurrency=calls)
    with events(stack.broker_url) as seen:
        batch = stack.submit("summarize", "--all")
        eventually(lambda: sim.stats()["in_flight"] == calls, "all slots are taken", timeout=300.0)
        full_at = sim.stats()["now"]
        memory = eventually(
            lambda: stack.status(batch)["completed"] >= calls and resident_mb(worker.pid),
            "a round is done",
            timeout=300.0,
        )
        assert stack.finished(batch, timeout=60.0 + 3 * rounds * call_s)["completed"] == jobs
        memory = max(memory, resident_mb(worker.pid))
        kinds = ("task-received", "task-started", "task-succeeded")
        eventually(lambda: all(seen[kind] == jobs for kind in kinds), lambda: f"{jobs}: {seen}")
    occupied = _occupancy(sim.log(), calls, full_at)
    note(f"{calls} calls: {100 * occupied:.1f} % occupied, {memory:.0f} MB")
    assert sim.stats()["max_in_flight"] == calls
    assert sim.stats()["answered"] == jobs
    if rounds > 4:
        assert occupied >= 0.95
    assert memory < 300


def _occupancy(log, calls, start):
    """Of the time from the first full house to the last start of a call: what share was used."""
    end = max(line["at"] for line in log)
    used = sum(
        max(0.0, min(line["at"] + line["duration_s"], end) - max(line["at"], start)) for line in log
    )
    return used / (calls * (end - start))


@pytest.mark.parametrize(
    ("hangs_s", "timeout_s", "shifts_s"),
    [slow(8.0, 1.5, 4.0), full(120.0, 10.0, 30.0)],
)
def test_a_provider_that_hangs_costs_its_deadline_and_gets_its_share_again(
    make_stack, sim, hangs_s, timeout_s, shifts_s
):
    slots, call_s = 8, 1.0
    stack = make_stack(
        providers=[
            provider(sim.openai_url, name, timeout_s=timeout_s, max_concurrency=slots)
            for name in ("hanging", "well")
        ]
    )
    sim.latency(call_s)
    # More than both can do before it hangs, and the other one meanwhile.
    stack.documents(round(slots / call_s * (hangs_s + 10)))
    stack.worker(concurrency=2 * slots)
    batches = [stack.submit("summarize", "--all")]
    eventually(lambda: answered(sim, "hanging", 0.0), "both are asked")
    sim.faults(kind="hang", model="model-hanging", for_s=hangs_s)
    begun = sim.stats()["now"]
    ended = begun + hangs_s
    eventually(lambda: sim.stats()["now"] > ended, "it hung for long enough", timeout=2 * hangs_s)

    def has_its_share():
        """Given work until then, however fast that is done."""
        if stack.status(batches[-1])["state"] != "running":
            batches.append(stack.submit("summarize", "--all", "--fresh"))
        return len(answered(sim, "hanging", ended)) > 2 * slots

    # It is looked at again and again, each time after twice as long: at the latest after as long as it hung.
    eventually(has_its_share, "it has its share again", timeout=90.0 + hangs_s)
    note(f"its share came {sim.stats()['now'] - ended:.1f} s after it hung")
    sim.latency(0.0)
    for batch in batches:
        status = stack.finished(batch, timeout=300.0)
        assert status["state"] == "completed", status
    hung = [line for line in sim.log() if line["fault"] == "hang"]
    late = [line for line in hung if line["at"] > begun + shifts_s]
    served = len(answered(sim, "well", begun + shifts_s, ended)) / (hangs_s - shifts_s)
    note(
        f"{len(hung)} calls hung, the longest {max(line['duration_s'] for line in hung):.2f} s;"
        f" {len(late)} of them after {shifts_s} s; the other one answered {served:.1f} a second"
    )
    assert max(line["duration_s"] for line in hung) <= timeout_s + 1.0
    # One probe at a time, and all else goes to the other one.
    assert len(late) <= (hangs_s - shifts_s) / timeout_s + 1
    assert served >= slots / call_s / 2
    assert sim.stats()["in_flight"] == 0


def answered(sim, name, since, until=float("inf")):
    """The whole answers of a provider to what arrived within these times."""
    return [
        line
        for line in sim.log()
        if line["whole"] and line["model"] == f"model-{name}" and since < line["at"] < until
    ]
