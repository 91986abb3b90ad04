"""Deadlines in both databases: what was not done in its time fails, once, and nobody begins it any more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.rows import at_once, change, claimed, column, new_job, new_result, register

from llmtasks.errors import InvalidOption
from llmtasks.executor import Executor, Watch
from llmtasks.jobs import JobState
from llmtasks.settings import Settings
from llmtasks.store import batches, deadlines, feed, jobs, outbox, workers
from llmtasks.tasks import received


def overdue(db, job_id, by_s=1.0):
    change(db, job_id, deadline_at=db.now() - by_s)


def timed(db, job_id="job", by_s=1.0, **values):
    """A queued job whose deadline has passed."""
    jobs.insert(db, [new_job(job_id, deadline_s=600.0, **values)], sent=True)
    overdue(db, job_id, by_s)


def ended(db, job_id="job"):
    job = jobs.get(db, job_id)
    return job.state, job.error_type, job.error_message


def test_the_time_counts_from_the_insert_and_without_one_there_is_none(db):
    jobs.insert(db, [new_job("timed", deadline_s=600.0), new_job("any")], sent=True)
    rows = [new_job("of a batch", deadline_s=0.5, batch_id="batch", direct=False)]
    batches.create(db, "batch", "default", "summarize", {}, rows)
    for job_id, deadline_s in (("timed", 600.0), ("of a batch", 0.5)):
        job = jobs.get(db, job_id)
        assert job.deadline_s == deadline_s
        assert job.deadline_at == pytest.approx(job.created_at + deadline_s, abs=0.5)
    assert jobs.get(db, "any").deadline_at is None
    assert jobs.claim(db, "timed", "worker").left_s == pytest.approx(600.0, abs=30.0)
    assert jobs.claim(db, "any", "worker").left_s is None
    (sent,) = feed.take(db, "summarize", *feed.lanes(db, "summarize"), limit=9)
    assert sent.deadline_s == 0.5


def test_what_nobody_runs_fails_once_its_time_is_over_and_says_what_it_waited_for(db):
    timed(db, "queued")
    parked = claimed(db, "waiting", deadline_s=1.5)
    jobs.park(db, parked, 1_000.0, "openai: RateLimitError", attempts=0, deferred=True)
    overdue(db, "waiting")
    jobs.insert(db, [new_job("in time", deadline_s=600.0), new_job("any")], sent=True)
    assert deadlines.end_overdue(db) == 2
    assert ended(db, "queued") == (
        JobState.FAILED,
        "DeadlineExceeded",
        "not done within 600 s: it was queued",
    )
    assert ended(db, "waiting") == (
        JobState.FAILED,
        "DeadlineExceeded",
        "not done within 1.5 s: it was waiting: openai: RateLimitError",
    )
    assert jobs.get(db, "waiting").not_before is None
    assert {jobs.get(db, one).state for one in ("in time", "any")} == {JobState.QUEUED}
    assert deadlines.end_overdue(db) == 0


def test_callers_are_told_the_sink_is_and_the_batch_ends(db):
    timed(db, "direct")
    rows = [new_job("fed", deadline_s=9.0, batch_id="batch", direct=False)]
    batches.create(db, "batch", "default", "summarize", {}, rows)
    overdue(db, "fed")
    assert deadlines.end_overdue(db, to_sink=True) == 2
    assert [row.job_id for row in feed.untold(db, "summarize", 9)] == ["direct"]
    assert {one.job_id for one in outbox.claim(db, "worker", 9, 30.0)} == {"direct", "fed"}
    assert batches.status(db, "batch").state == "failed"


def test_the_overdue_are_neither_woken_nor_fed_but_ended(db):
    parked = claimed(db, "parked", deadline_s=9.0)
    jobs.park(db, parked, -1.0, "openai: RateLimitError", attempts=0, deferred=True)
    rows = [new_job(one, deadline_s=9.0, batch_id="b", direct=False) for one in ("late", "soon")]
    batches.create(db, "b", "default", "summarize", {}, rows)
    overdue(db, "parked")
    overdue(db, "late")
    assert feed.wake_due(db) == 0
    assert [row.job_id for row in feed.fill(db, "summarize", 9, 600.0)] == ["soon"]
    assert deadlines.end_overdue(db) == 2
    assert ended(db, "parked")[2].endswith("it was waiting: openai: RateLimitError")


def test_no_more_than_the_limit_are_ended_the_longest_overdue_first(db):
    for late in (5.0, 7.0, 6.0):
        timed(db, f"{late:.0f}", by_s=late)
    assert deadlines.end_overdue(db, limit=2) == 2
    assert [ended(db, one)[0].value for one in "765"] == ["failed", "failed", "queued"]


def test_of_many_who_end_the_overdue_each_row_is_ended_by_one(db):
    for number in range(40):
        timed(db, str(number))
    counts = at_once([lambda: deadlines.end_overdue(db, to_sink=True)] * 6)
    assert sum(counts) == 40
    assert outbox.waiting(db).count == 40


def test_an_overdue_row_is_claimed_by_nobody_and_ended_by_who_holds_its_message(db):
    timed(db)
    sent_at = column(db, "job", "sent_at")
    assert jobs.claim(db, "job", "worker") is None
    assert deadlines.end_if_overdue(db, "job", "worker", to_sink=True)
    assert not deadlines.end_if_overdue(db, "job", "worker")
    assert ended(db)[1] == "DeadlineExceeded"
    assert outbox.waiting(db).count == 1
    # Who holds the message tells the caller; should it die before that, its row says whose it was.
    assert (column(db, "job", "sent_at"), column(db, "job", "worker_id")) == (sent_at, "worker")


@pytest.mark.parametrize("state", ["in time", "running", "completed"])
def test_what_is_in_time_running_or_done_is_not_ended_by_a_message(db, state):
    job = claimed(db, deadline_s=600.0)
    if state == "completed":
        assert jobs.complete(db, job, new_result())
    if state == "in time":
        jobs.release(db, job, attempts=0)
    else:
        overdue(db, "job")
    before = ended(db)
    assert not deadlines.end_if_overdue(db, "job", "worker")
    assert ended(db) == before


def test_a_running_job_is_its_workers_to_end_and_its_result_is_kept(db):
    job = claimed(db, deadline_s=600.0)
    overdue(db, "job")
    assert deadlines.end_overdue(db) == 0
    assert jobs.complete(db, job, new_result())


def test_a_running_job_that_its_worker_does_not_end_is_ended_after_a_while(db):
    job = claimed(db, deadline_s=600.0)
    overdue(db, "job", by_s=deadlines.GRACE_S + 1.0)
    assert deadlines.end_overdue(db) == 1
    assert ended(db)[2] == "not done within 600 s: its worker was busy with it"
    # Its caller hears what the row says.
    assert not jobs.complete(db, job, new_result())
    assert not jobs.fail(db, job, "DocumentSourceFailed", "it came to nothing")


def test_the_job_of_a_dead_worker_is_ended_not_run_again(db):
    claimed(db, deadline_s=600.0)
    overdue(db, "job")
    register(db, lease_s=-1.0)
    assert workers.reap(db, 3).requeued == 1
    assert jobs.claim(db, "job", "other") is None
    assert deadlines.end_overdue(db) == 1


def test_a_retried_job_has_its_whole_time_again(db):
    timed(db)
    deadlines.end_overdue(db)
    assert jobs.retry(db, "job") == 1
    assert deadlines.end_overdue(db) == 0
    assert jobs.claim(db, "job", "worker").left_s == pytest.approx(600.0, abs=30.0)


def test_what_a_deadline_ended_counts_neither_as_work_nor_as_claimed(db):
    jobs.insert(db, [new_job("waits")], sent=True)
    change(db, "waits", sent_at=db.now() - feed.OVERTAKEN_AFTER_S - 30.0)
    timed(db)
    deadlines.end_overdue(db)
    change(db, "job", sent_at=db.now())
    assert feed.finished_rate(db, "summarize", 5.0) == 0.0
    assert feed.forgotten(db, "summarize", 5.0, queue_empty=False, limit=9) == []


def test_a_job_that_can_only_fail_has_a_failed_row_at_once(db):
    job = new_job(batch_id="group", options={})
    jobs.insert_failed(db, job, "worker", "InvalidOption", "too many", to_sink=True)
    jobs.insert_failed(db, job, "worker", "InvalidOption", "again", to_sink=True)
    assert ended(db) == (JobState.FAILED, "InvalidOption", "too many")
    assert batches.status(db, "group").failed == 1
    assert outbox.waiting(db).count == 1
    assert jobs.claim(db, "job", "worker") is None


def test_a_refused_job_that_is_retried_fails_again_without_a_call(db):
    executor = Executor(
        db=db, gateway=None, loop=None, settings=Settings(), worker_id="worker", converters=None
    )
    message = SimpleNamespace(id="job", ignore_result=False, group=None, group_index=None)
    for absent in ("chord", "chain", "callbacks", "errbacks", "root_id", "parent_id"):
        setattr(message, absent, None)
    job = received(message, "doc", "summarize", {"max_words": 9, "deadline_s": "soon"})
    for again in (False, True):
        with pytest.raises(InvalidOption, match="deadline_s must be a number"):
            executor.run(job, Watch())
        assert jobs.retry(db, "job") == 1, again
    assert jobs.get(db, "job").options["max_words"] == 9
