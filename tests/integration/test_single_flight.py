"""The same question, asked by many at once: paid once, whatever happens to the one who asks it."""

from __future__ import annotations

import re
import signal
import time
import urllib.request

import pytest
import redis
import sqlalchemy as sa
from support.stack import eventually, provider

from llmtasks.store.tables import jobs

#: Seconds, as llmtasks/admission/lua/flight.lua has it.
LEASE = 10.0


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)])


SEND = """
import sys
from llmtasks import add_document, process_document
add_document("The same text for everybody.", "d")
for name in sys.argv[1:]:
    process_document.apply_async(("d", "summarize"), task_id=name)
"""


def send(stack, *names: str) -> list[str]:
    stack.script(SEND, *names)
    return [*names]


def states(stack, names: list[str]) -> list[str]:
    with stack.database.read() as connection:
        found = connection.execute(sa.select(jobs.c.job_id, jobs.c.state)).all()
    state_of = {row.job_id: row.state for row in found}
    return [state_of[name] for name in names]


def all_are(stack, names: list[str], state: str):
    return lambda: set(states(stack, names)) == {state}


def cached_answers(stack) -> list[bytes]:
    with redis.Redis.from_url(stack.broker_url) as client:
        return [client.get(key) for key in client.scan_iter() if b":c:" in key]


def led_by_one_and_followed_by_another(stack, sim, latency: float):
    """A worker that is calling, one that follows with three jobs, and the names of all four jobs."""
    sim.latency(latency)
    leader = stack.worker(concurrency=1)
    first = send(stack, "leader")
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    follower = stack.worker(concurrency=3)
    others = send(stack, "b", "c", "d")
    eventually(all_are(stack, others, "running"), "the others are at it too")
    return leader, follower, first, others


def hits_and_misses(workers) -> tuple[float, float]:
    total = {"hit": 0.0, "miss": 0.0}
    for worker in workers:
        url = re.search(r"http://\S+/metrics", worker.output()).group()
        with urllib.request.urlopen(url) as answer:
            for result, count in re.findall(
                r'llm_cache_hits_total{result="(\w+)"} (\S+)', answer.read().decode()
            ):
                total[result] += float(count)
    return total["hit"], total["miss"]


def test_two_hundred_jobs_over_three_workers_are_one_call(make_stack, sim):
    # A busy machine must not look like a dead worker here.
    stack = make_stack(
        providers=[provider(sim.openai_url)], settings={"delivery": {"lease_s": 30.0}}
    )
    workers = [stack.worker(concurrency=70) for _ in range(3)]
    sim.latency(4.0)
    names = send(stack, *(f"job-{n}" for n in range(200)))
    eventually(all_are(stack, names, "completed"), "all are done")
    assert sim.stats()["requests"] == 1
    assert sum(len(stack.calls(name)) for name in names) == 1
    assert hits_and_misses(workers) == (199, 1)


def test_a_killed_leader_costs_one_call_more_and_nobody_waits_beyond_its_lease(stack, sim):
    leader, _, first, others = led_by_one_and_followed_by_another(stack, sim, 60.0)
    sim.latency(1.0)
    killed = time.monotonic()
    leader.kill()
    eventually(all_are(stack, [*first, *others], "completed"), "everybody has the answer")
    assert time.monotonic() - killed < LEASE + 1.0 + 1.0 + 1.0  # the lease, a spread, the call
    assert sim.stats()["requests"] == 2
    assert [stack.job(name).attempts for name in others] == [1] * 3


def test_a_stopped_leader_that_wakes_up_overwrites_nothing(stack, sim):
    leader, _, first, others = led_by_one_and_followed_by_another(stack, sim, 20.0)
    stack.freeze(leader)
    sim.latency(1.0)
    eventually(all_are(stack, [*first, *others], "completed"), "others answered it")
    (answer,) = cached_answers(stack)
    leader.signal(signal.SIGCONT)
    eventually(lambda: "job-superseded" in leader.output(), "the zombie has ended its call")
    assert cached_answers(stack) == [answer]
    assert sim.stats()["answered"] == 2


def test_a_leader_whose_job_is_cancelled_hands_on_at_once(stack, sim):
    _, follower, first, others = led_by_one_and_followed_by_another(stack, sim, 60.0)
    gone = others.pop()
    stack.cli("cancel", gone)
    eventually(lambda: "job-cancelled" in follower.output(), "who follows can be cancelled too")
    sim.latency(0.0)
    cancelled = time.monotonic()
    stack.cli("cancel", *first)
    eventually(all_are(stack, others, "completed"), "the others have their answer")
    assert time.monotonic() - cancelled < LEASE / 2
    assert states(stack, [*first, gone]) == ["cancelled"] * 2
    assert sim.stats()["requests"] == 2


def test_a_draining_worker_leaves_what_it_follows_and_what_it_leads(stack, sim):
    leader, follower, first, others = led_by_one_and_followed_by_another(stack, sim, 60.0)
    stopped = time.monotonic()
    assert follower.terminate() == 0
    assert time.monotonic() - stopped < LEASE / 2
    assert set(states(stack, others)) <= {"queued", "waiting"}
    assert [stack.job(name).attempts for name in others] == [0] * 3
    stack.configure(worker={"drain_s": 1.0})
    second = stack.worker(concurrency=3)
    eventually(all_are(stack, others, "running"), "followed again")
    sim.latency(0.0)
    leader.kill()
    eventually(all_are(stack, [*first, *others], "completed"), "everybody has the answer")
    assert second.terminate() == 0


def test_an_answer_that_is_refused_is_its_own_job_s_only(stack, sim):
    sim.latency(1.0)
    sim.faults(kind="refusal", next=1)
    stack.worker(concurrency=8)
    names = send(stack, *"abcdefgh")
    eventually(lambda: not {"queued", "running"} & set(states(stack, names)), "all have ended")
    assert sorted(states(stack, names)) == ["completed"] * 7 + ["failed"]
    assert sim.stats()["requests"] <= 3  # after a failure two may ask at once


def test_without_wake_up_calls_everybody_still_ends(make_stack, sim, own_valkey):
    """The server forbids ours, as a strict one may; the channels that are left are Celery's."""
    with redis.Redis.from_url(own_valkey.url) as client:
        rules = ("on", ">secret", "~*", "+@all", "resetchannels", "&celery-task-meta-*")
        client.execute_command("ACL", "SETUSER", "strict", *rules)
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        broker=own_valkey,
        settings={"redis": {"url": own_valkey.url.replace("//", "//strict:secret@")}},
    )
    sim.latency(2.0)
    worker = stack.worker(concurrency=8)
    names = send(stack, *"abcdefgh")
    eventually(all_are(stack, names, "completed"), "all are done")
    assert sim.stats()["requests"] == 1
    assert "wakes-away" in worker.output()


def test_only_the_same_question_is_shared(stack, sim):
    sim.latency(2.0)
    stack.worker(concurrency=20)
    stack.script(
        """
        from llmtasks import add_document, process_document
        for tenant in "ab":
            add_document("The same text for everybody.", "d", tenant=tenant)
            for number in range(3):
                for language in ("es", "fr"):
                    process_document.delay("d", "translate", target_language=language, tenant=tenant)
                process_document.delay("d", "summarize", tenant=tenant)
        """
    )
    eventually(
        lambda: sim.stats()["in_flight"] == 0 and sim.stats()["answered"] == 6,
        "two tenants' summaries, and two languages of each",
    )
    worker = stack.worker(concurrency=1)
    assert worker.terminate() == 0
    assert sim.stats()["requests"] == 6


def test_who_wants_a_fresh_answer_asks_for_itself(stack, sim):
    sim.latency(3.0)
    stack.worker(concurrency=8)
    first = send(stack, "a")
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    stack.script(
        """
        from llmtasks import process_document
        for name in ("fresh-1", "fresh-2"):
            process_document.apply_async(("d", "summarize"), {"fresh": True}, task_id=name)
        """
    )
    names = [*first, "fresh-1", "fresh-2"]
    eventually(all_are(stack, names, "completed"), "all are done")
    assert [len(stack.calls(name)) for name in names] == [1, 1, 1]
