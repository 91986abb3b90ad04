"""A thousand times the same question, asked by eight processes at once: one call. Prints figures.

make bench
"""

from __future__ import annotations

import time

import pytest
import redis
from support.stack import provider

pytestmark = pytest.mark.bench

JOBS = 1_000
WORKERS = 8

#: Longer than a small machine needs to begin all of them.
CALL_S = 60.0

SEND = """
import json, sys
from celery import group
from llmtasks import add_document, process_document
add_document("The same text for everybody.", "d")
sent = group(process_document.s("d", "summarize") for _ in range(int(sys.argv[1]))).apply_async()
print(json.dumps(sent.id))
"""


def commands(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("stats")["total_commands_processed"])


def test_a_thousand_jobs_over_eight_processes_are_one_call(make_stack, sim, capsys):
    stack = make_stack(
        database="postgresql",
        providers=[provider(sim.openai_url, timeout_s=600)],
        # A busy machine must not look like a dead worker here.
        settings={"delivery": {"lease_s": 60.0}},
    )
    sim.latency(CALL_S)
    batch = stack.script(SEND, str(JOBS))
    before, started = commands(stack.broker_url), time.monotonic()
    for _ in range(WORKERS):
        stack.worker(concurrency=JOBS // WORKERS)
    most = 0
    while (status := stack.status(batch))["state"] == "running":
        most = max(most, status["running"])
        time.sleep(0.2)
    seconds = time.monotonic() - started
    asked = commands(stack.broker_url) - before
    with capsys.disabled():
        print(
            f"\n{JOBS} identical jobs, {most} of them at the same time in {WORKERS} processes:"
            f" {sim.stats()['requests']} call, {seconds:.1f} s, {asked / JOBS:.1f} Redis commands a job"
        )
    assert (status["completed"], status["cached"]) == (JOBS, JOBS - 1)
    assert sim.stats()["requests"] == 1
