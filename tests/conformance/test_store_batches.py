"""Batches in both databases: written whole, counted honestly."""

from __future__ import annotations

import pytest
from support.rows import claimed, new_call, new_document, new_job, new_result

from llmtasks.errors import BatchExists, InvalidOption
from llmtasks.jobs import JobState
from llmtasks.messages import Usage
from llmtasks.store import batches, calls, documents, jobs
from llmtasks.store.batches import state_of


def create(db, *names, batch_id="batch"):
    rows = [new_job(name, batch_id=batch_id, direct=False) for name in names]
    return batches.create(db, batch_id, "default", "summarize", {"words": 5}, rows)


def run(db, job_id):
    job = jobs.claim(db, job_id, "worker")
    assert job is not None
    return job


def test_a_batch_is_written_whole_or_not_at_all(db):
    def rows():
        yield new_job("a", batch_id="batch")
        yield new_job("b" * 256, batch_id="batch")

    with pytest.raises(InvalidOption):
        batches.create(db, "batch", "default", "summarize", {}, rows())
    assert batches.status(db, "batch") is None
    assert jobs.get(db, "a") is None


def test_a_failure_in_the_middle_of_writing_leaves_nothing(db, monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK", 2)
    rows = [new_job("a"), new_job("b"), new_job("c", options={"n": float("nan")})]
    with pytest.raises(Exception, match="JSON compliant"):
        batches.create(db, "batch", "default", "summarize", {}, rows)
    assert batches.status(db, "batch") is None
    assert jobs.get(db, "a") is None


def test_a_batch_written_again_after_a_lost_answer_is_the_same_batch(db):
    assert create(db, "a", "b") == 2
    assert create(db, "a", "b") == 2
    assert batches.status(db, "batch").total == 2


def test_no_jobs_make_no_batch(db):
    assert create(db) == 0
    assert batches.status(db, "batch") is None


def test_chunks_of_a_large_batch_keep_its_order_and_pin_its_documents(db, monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK", 4)
    documents.add(db, [new_document()])
    names = [f"job-{n}" for n in range(11)]
    assert create(db, *names) == 11
    assert run(db, "job-10").document_hash == "hash of a text"


def test_the_status_counts_every_job_once(db):
    create(db, *"abcdefg")
    jobs.complete(db, run(db, "a"), new_result(cached=True))
    jobs.complete(db, run(db, "b"), new_result())
    jobs.fail(db, run(db, "c"), "JobError", "no")
    jobs.park(db, run(db, "d"), 100.0, "openai: rate limit", attempts=1, deferred=True)
    run(db, "e")
    jobs.cancel(db, "f")
    found = batches.status(db, "batch")
    assert (found.state, found.total) == ("running", 7)
    assert (found.queued, found.running, found.waiting) == (1, 1, 1)
    assert (found.completed, found.failed, found.cancelled) == (2, 1, 1)
    assert found.cached == 1
    assert found.reasons == {"openai: rate limit": 1}


def test_a_batch_costs_what_was_paid_also_for_what_failed_or_ran_twice(db):
    create(db, "a", "b", "c")
    assert batches.status(db, "batch").cost_usd == 0.0
    first = run(db, "a")
    calls.record(db, first, [new_call("1", cost_usd=0.5)])
    jobs.release(db, first, attempts=0)
    second = run(db, "a")
    calls.record(db, second, [new_call("2", cost_usd=0.25)])
    jobs.complete(db, second, new_result(cost_usd=0.25))
    failed = run(db, "b")
    calls.record(db, failed, [new_call("3", cost_usd=1.0, outcome="OutputInvalid")])
    jobs.fail(db, failed, "OutputInvalid", "no")
    found = batches.status(db, "batch")
    assert found.cost_usd == 1.75
    assert (found.input_tokens, found.output_tokens) == (30, 6)


def test_one_unknown_price_makes_the_cost_unknown_not_zero(db):
    create(db, "a")
    job = run(db, "a")
    calls.record(db, job, [new_call("1"), new_call("2", usage=None, cost_usd=None)])
    found = batches.status(db, "batch")
    assert found.cost_usd is None
    assert found.input_tokens == 10


def test_a_single_job_is_a_batch_of_one(db):
    job = claimed(db, "alone")
    calls.record(db, job, [new_call(usage=Usage(input_tokens=3), cost_usd=0.5)])
    jobs.complete(db, job, new_result(cached=True))
    found = batches.status(db, "alone")
    assert (found.batch_id, found.state, found.total) == ("alone", "completed", 1)
    assert (found.cached, found.input_tokens, found.cost_usd) == (1, 3, 0.5)
    assert batches.status(db, "nobody") is None


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ({}, "completed"),
        ({"completed": 2}, "completed"),
        ({"cancelled": 2}, "cancelled"),
        ({"failed": 2}, "failed"),
        ({"failed": 1, "cancelled": 1}, "failed"),
        ({"completed": 1, "cancelled": 1}, "partial"),
        ({"completed": 1, "failed": 1}, "partial"),
        ({"completed": 1, "queued": 1}, "running"),
        ({"failed": 1, "waiting": 1}, "running"),
        ({"cancelled": 1, "running": 1}, "running"),
    ],
    ids=str,
)
def test_the_state_of_a_batch_follows_from_its_counts(ended, expected):
    assert state_of({state: ended.get(state.value, 0) for state in JobState}) == expected


def test_a_batch_gets_no_jobs_of_another_tenant_nor_of_a_request_that_wants_a_new_one(db):
    rows = [new_job("a", batch_id="nightly"), new_job("b", batch_id="nightly")]
    for _ in range(2):  # the answer to the first time may have been lost
        made = batches.create(db, "nightly", "default", "summarize", {}, rows, only_new=True)
        assert made == 2
    for tenant, only_new in (("default", True), ("other", True), ("other", False)):
        with pytest.raises(BatchExists):
            batches.create(
                db,
                "nightly",
                tenant,
                "summarize",
                {},
                [new_job("c", batch_id="nightly")],
                only_new=only_new,
            )
    assert batches.status(db, "nightly").total == 2
    assert batches.tenant_of(db, "nightly") == "default"
    assert batches.tenant_of(db, "a") == "default"
    assert batches.tenant_of(db, "nobody") is None
