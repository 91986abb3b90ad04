"""Producers that die half-way: what they committed runs once, what they did not never does."""

from __future__ import annotations

import json
import sys
import time
import urllib.request

import pytest
from support.delivery import calls_by_question, events, full, note, rows, settled, short
from support.stack import eventually, provider
from support.valkey import free_port

#: Sends a group, and says how far it is.
GROUP = """
import sys
from celery import group
from llmtasks import process_document
from llmtasks.client import document_ids
ids = list(document_ids())
print(len(ids), flush=True)
group(process_document.s(one, "summarize") for one in ids).apply_async()
print("all", flush=True)
"""

#: How many jobs a second each way of sending takes.
RATES = """
import json, sys, time
from celery import group
from llmtasks import process_document, submit_batch
from llmtasks.client import document_ids
ids = list(document_ids())[: int(sys.argv[1])]
process_document.delay(ids[0], "extract")
rates = {}
def timed(name, count, send):
    started = time.perf_counter()
    send()
    rates[name] = round(count / (time.perf_counter() - started))
some = ids[: len(ids) // 10]
timed("delay", len(some), lambda: [process_document.delay(one, "extract") for one in some])
timed("group", len(ids), group(process_document.s(one, "extract") for one in ids).apply_async)
timed("submit_batch", len(ids), lambda: submit_batch(ids, "extract"))
print(json.dumps(rates))
"""


@pytest.mark.parametrize("jobs", [short(300), full(10_000)])
def test_of_a_group_whose_producer_is_killed_what_was_committed_runs_once(make_stack, sim, jobs):
    stack = make_stack(providers=[provider(sim.openai_url)], database="postgresql")
    stack.documents(jobs)
    with events(stack.broker_url) as seen:
        producer = stack.start([sys.executable, "-c", GROUP], "producer")
        eventually(lambda: len(rows(stack, "job_id")) >= jobs // 2, "it is half-way")
        producer.kill()
        assert "all" not in producer.output()
        committed = {row.job_id for row in rows(stack, "job_id")}
        (batch,) = {row.batch_id for row in rows(stack, "batch_id")}
        assert jobs // 2 <= len(committed) < jobs
        stack.worker(concurrency=32)
        status = stack.finished(batch, timeout=600.0)
        assert (status["completed"], status["total"]) == (len(committed), len(committed))
        settled(stack.broker_url)
        eventually(lambda: seen["task-succeeded"] == len(committed), lambda: str(seen))
    assert {row.job_id for row in rows(stack, "job_id")} == committed
    assert {row.attempts for row in rows(stack, "attempts")} == {1}
    assert len(calls_by_question(sim)) == sim.stats()["requests"] == len(committed)


@pytest.mark.chaos
def test_flower_sql_and_the_provider_count_the_same_and_flower_may_be_restarted(make_stack, sim):
    port = free_port()
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        database="postgresql",
        settings={"flower": {"port": port}},
    )
    jobs = len(stack.documents(2_000))
    argv = [sys.executable, "-m", "celery", "-A", "workers.app", "flower", "--max_tasks=100000"]
    stack.env["FLOWER_UNAUTHENTICATED_API"] = "true"
    flower = stack.start(argv, "flower")
    eventually(lambda: shown(port) is not None, lambda: f"Flower is there: {flower.output()}")
    stack.worker(concurrency=32)
    sent = stack.start([sys.executable, "-c", GROUP], "producer")
    assert sent.wait(300.0) == 0, sent.output()
    (batch,) = {row.batch_id for row in rows(stack, "batch_id")}
    assert stack.finished(batch, timeout=600.0)["completed"] == jobs
    assert sim.stats()["requests"] == jobs
    eventually(lambda: shown(port) == {"SUCCESS": jobs}, lambda: f"Flower says {shown(port)}")
    flower.kill()
    flower = stack.start(argv, "flower")
    eventually(lambda: shown(port) is not None, "Flower is there again")
    assert stack.status(batch)["completed"] == jobs
    assert len(stack.results(batch)) == jobs


def shown(port):
    """Flower's tasks by state; None while it does not answer."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/tasks?limit=100000", timeout=60
        ) as answer:
            tasks = json.load(answer)
    except OSError:
        return None
    counts: dict[str, int] = {}
    for task in tasks.values():
        counts[task["state"]] = counts.get(task["state"], 0) + 1
    return counts


@pytest.mark.chaos
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_ten_thousand_jobs_are_sent_in_seconds(make_stack, sim, database):
    stack = make_stack(providers=[provider(sim.openai_url)], database=database)
    stack.documents(10_000)
    started = time.monotonic()
    rates = stack.script(RATES, "10000")
    note(f"{database}: jobs a second {rates}, all in {time.monotonic() - started:.0f} s")
    assert rates["submit_batch"] >= 2_000
