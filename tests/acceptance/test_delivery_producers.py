"""Producers that die half-way: what they committed runs once, what they did not never does."""

from __future__ import annotations

import sys

import pytest
from support.delivery import calls_by_question, events, full, rows, settled, short
from support.stack import eventually, provider

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
