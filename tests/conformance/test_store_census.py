"""What the database says is open, in both."""

from __future__ import annotations

import pytest
from support.rows import change, claimed, new_job, new_result

from llmtasks.store import census, jobs
from llmtasks.store.census import OpenJobs


def counts(db) -> dict[str, tuple[int, int, int]]:
    return {one.task_type: (one.queued, one.running, one.waiting) for one in census.open_jobs(db)}


def test_nothing_open_is_nothing(db):
    jobs.complete(db, claimed(db), new_result())
    assert census.open_jobs(db) == []
    assert census.undelivered(db) == 0


def test_open_jobs_are_counted_by_type_and_state_and_ended_ones_are_not(db):
    jobs.insert(db, [new_job(f"sent-{n}") for n in range(3)], sent=True)
    jobs.insert(db, [new_job(f"unsent-{n}") for n in range(4)], sent=False)
    jobs.insert(db, [new_job("other", task_type="extract")], sent=False)
    claimed(db, "running")
    claimed(db, "translated", task_type="translate")
    jobs.park(db, claimed(db, "parked"), 60.0, "why", attempts=0, deferred=True)
    jobs.complete(db, claimed(db, "done"), new_result())
    jobs.fail(db, claimed(db, "failed"), "JobError", "why")
    assert counts(db) == {"extract": (1, 0, 0), "summarize": (7, 1, 1), "translate": (0, 1, 0)}


@pytest.mark.parametrize("sent", [True, False])
def test_the_age_of_the_oldest_queued_job_counts_from_its_submission(db, sent):
    jobs.insert(db, [new_job("old"), new_job("new")], sent=sent)
    jobs.insert(db, [new_job("young")], sent=not sent)
    change(db, "old", created_at=db.now() - 500.0)
    (found,) = census.open_jobs(db)
    assert found.queued == 3
    assert 500.0 <= found.oldest_s < 600.0


def test_what_runs_or_waits_has_no_age_in_the_queue(db):
    claimed(db, "running")
    change(db, "running", created_at=db.now() - 500.0)
    assert census.open_jobs(db) == [OpenJobs(task_type="summarize", running=1)]


def test_what_the_sink_is_still_to_get_is_counted(db):
    for name in ("a", "b"):
        jobs.complete(db, claimed(db, name), new_result(answer_key=name), to_sink=True)
    assert census.undelivered(db) == 2
