"""Jobs in both databases: every move is conditional, and of two who try one wins."""

from __future__ import annotations

import shutil
import threading

import pytest
import sqlalchemy as sa
from support.rows import (
    at_once,
    change,
    claimed,
    column,
    new_document,
    new_job,
    new_result,
    register,
)

from llmtasks.errors import InvalidOption, UnknownJob
from llmtasks.jobs import JobState
from llmtasks.store import batches, documents, feed, jobs, results, workers
from llmtasks.store.engine import Database
from llmtasks.store.tables import batches as batches_table


def state(db, job_id="job"):
    return jobs.get(db, job_id).state


# --- inserting


def test_the_same_id_twice_is_one_job_and_the_first_is_kept(db):
    assert jobs.insert(db, [new_job(document_id="first")], sent=True) == [True]
    again = [new_job(document_id="second"), new_job("other"), new_job("other")]
    assert jobs.insert(db, again, sent=True) == [False, True, False]
    assert jobs.get(db, "job").document_id == "first"


def test_of_two_who_insert_the_same_id_at_once_one_makes_the_row(db):
    made = at_once([lambda: jobs.insert(db, [new_job()], sent=True)] * 8)
    assert sorted(made) == [[False]] * 7 + [[True]]


def test_what_was_submitted_comes_back(db):
    given = new_job(
        options={"target_language": "es", "n": 1, "odd": "\x00\ud800é"},
        tenant="acme",
        priority=7,
        fresh=True,
        direct=False,
        batch_id="batch",
        canvas={"chord": {"x": [1]}},
    )
    jobs.insert(db, [given], sent=False)
    found = jobs.get(db, "job")
    for name in ("options", "tenant", "priority", "fresh", "direct", "batch_id", "canvas"):
        assert getattr(found, name) == getattr(given, name)
    assert found.state is JobState.QUEUED
    assert abs(found.created_at - db.now()) < 5


@pytest.mark.parametrize("length", [1, 255])
def test_any_id_up_to_255_characters_is_a_job_id(db, length):
    job_id = "é" * length
    assert jobs.insert(db, [new_job(job_id)], sent=True) == [True]
    assert jobs.claim(db, job_id, "worker").job_id == job_id


@pytest.mark.parametrize(
    "bad",
    [
        {"job_id": "x" * 256},
        {"job_id": ""},
        {"job_id": "a\x00b"},
        {"job_id": "a\ud800b"},
        {"batch_id": "x" * 256},
        {"tenant": "x" * 129},
        {"document_id": "x" * 513},
        {"priority": 10},
        {"priority": -1},
    ],
    ids=str,
)
def test_what_no_row_can_hold_is_an_invalid_option_and_nothing_is_stored(db, bad):
    with pytest.raises(InvalidOption, match=next(iter(bad))):
        jobs.insert(db, [new_job("fine"), new_job(**bad)], sent=True)
    assert jobs.get(db, "fine") is None


def test_ids_that_cannot_exist_are_unknown_not_an_error(db):
    assert jobs.get(db, "a\x00") is None
    assert jobs.claim(db, "a\ud800", "worker") is None
    assert batches.status(db, "a\x00") is None
    with pytest.raises(UnknownJob):
        jobs.cancel(db, "a\x00")


def test_a_job_is_about_the_text_its_document_had_at_submission(db):
    documents.add(db, [new_document(text="old")])
    jobs.insert(db, [new_job()], sent=True)
    documents.add(db, [new_document(text="new")])
    jobs.insert(db, [new_job("later")], sent=True)
    for job_id, text in (("job", "old"), ("later", "new")):
        job = jobs.claim(db, job_id, "worker")
        assert documents.load(db, "default", "doc", job.document_hash).text == text


def test_a_job_without_a_document_is_accepted_and_pins_nothing(db):
    assert claimed(db).document_hash is None


def test_a_group_of_direct_jobs_is_a_batch_and_mixed_types_have_none(db):
    for number, task_type in enumerate(["summarize", "summarize", "extract"]):
        job = new_job(str(number), task_type=task_type, batch_id="group")
        jobs.insert(db, [job], sent=True)
    jobs.insert(db, [new_job("3", batch_id="pure"), new_job("4", batch_id="pure")], sent=True)
    with db.read() as connection:
        columns = (batches_table.c.batch_id, batches_table.c.task_type)
        found = dict(connection.execute(sa.select(*columns)).all())
    assert found == {"group": None, "pure": "summarize"}
    assert batches.status(db, "group").total == 3


# --- claiming


def test_of_many_who_claim_a_job_one_gets_it(db):
    jobs.insert(db, [new_job()], sent=True)
    got = at_once([lambda n=n: jobs.claim(db, "job", f"worker-{n}") for n in range(8)])
    winners = [job for job in got if job is not None]
    assert len(winners) == 1
    assert winners[0].fence == winners[0].attempts == 1
    assert jobs.get(db, "job").worker_id == winners[0].worker_id


def test_a_waiting_job_is_claimed_only_when_it_is_due(db):
    job = claimed(db)
    assert jobs.park(db, job, 1000.0, "rate limit", attempts=0, deferred=True)
    assert jobs.claim(db, "job", "worker") is None
    change(db, "job", not_before=db.now() - 1)
    again = jobs.claim(db, "job", "worker")
    assert (again.fence, again.attempts, again.deferrals) == (2, 1, 1)
    assert again.reason is None
    assert again.not_before is None
    assert again.resumed
    assert not job.resumed


@pytest.mark.parametrize("end", ["complete", "fail", "cancel", "running"])
def test_what_is_running_or_has_ended_is_not_claimed(db, end):
    job = claimed(db)
    if end == "complete":
        jobs.complete(db, job, new_result())
    elif end == "fail":
        jobs.fail(db, job, "JobError", "no")
    elif end == "cancel":
        jobs.cancel(db, "job")
    assert jobs.claim(db, "job", "other") is None


# --- the holder's moves


def test_only_the_newest_holder_commits(db):
    old = claimed(db)
    jobs.release(db, old, attempts=0)
    new = jobs.claim(db, "job", "other")
    assert not jobs.complete(db, old, new_result(output="old"))
    assert not jobs.fail(db, old, "JobError", "no")
    assert not jobs.park(db, old, 0.0, "no", attempts=1, deferred=False)
    assert not jobs.release(db, old, attempts=0)
    assert state(db) is JobState.RUNNING
    assert results.get(db, "job") is None
    assert jobs.complete(db, new, new_result(output="new"))
    assert results.get(db, "job").output == "new"


def test_a_result_and_the_end_of_its_job_are_stored_together_or_not_at_all(db):
    job = claimed(db)
    with pytest.raises((ValueError, sa.exc.StatementError), match="JSON compliant"):
        jobs.complete(db, job, new_result(output=float("nan")))
    assert state(db) is JobState.RUNNING
    assert jobs.complete(db, job, new_result(output=None))
    assert results.get(db, "job").output is None


def test_a_move_whose_answer_was_lost_can_be_repeated(db):
    job = claimed(db)
    assert jobs.complete(db, job, new_result(output=1))
    assert jobs.complete(db, job, new_result(output=2))
    assert results.get(db, "job").output == 1
    assert not jobs.fail(db, job, "JobError", "no")

    other = claimed(db, "other")
    assert jobs.park(db, other, 5.0, "why", attempts=1, deferred=True)
    assert jobs.park(db, other, 5.0, "why", attempts=1, deferred=True)
    assert jobs.get(db, "other").deferrals == 1


def test_of_completing_and_cancelling_at_once_one_happens(db):
    for number in range(20):
        job = claimed(db, f"job-{number}")
        completed, cancelled = at_once(
            [
                lambda job=job: jobs.complete(db, job, new_result()),
                lambda job=job: jobs.cancel(db, job.job_id) == 1,
            ]
        )
        assert completed != cancelled
        assert (results.get(db, job.job_id) is not None) == completed


def test_of_claiming_and_cancelling_at_once_the_cancelled_job_stays_cancelled(db):
    for number in range(20):
        job_id = f"job-{number}"
        jobs.insert(db, [new_job(job_id)], sent=True)
        job, cancelled = at_once(
            [
                lambda job_id=job_id: jobs.claim(db, job_id, "worker"),
                lambda job_id=job_id: jobs.cancel(db, job_id),
            ]
        )
        assert cancelled == 1
        assert state(db, job_id) is JobState.CANCELLED
        assert job is None or not jobs.complete(db, job, new_result())


def test_parking_says_when_and_why_and_costs_what_it_is_told(db):
    job = claimed(db)
    assert jobs.park(db, job, 100.0, "openai: rate limit", attempts=0, deferred=True)
    row = jobs.get(db, "job")
    assert row.state is JobState.WAITING
    assert 90 < row.not_before - db.now() <= 100
    assert (row.reason, row.attempts, row.deferrals) == ("openai: rate limit", 0, 1)
    assert row.worker_id is None


def test_a_released_job_waits_for_the_feeder(db):
    job = claimed(db)
    assert jobs.release(db, job, attempts=0)
    row = jobs.get(db, "job")
    assert (row.state, row.attempts, row.worker_id) == (JobState.QUEUED, 0, None)
    assert column(db, "job", "sent_at") is None


def test_a_failure_is_kept_with_its_type_and_a_storable_message(db):
    job = claimed(db)
    assert jobs.fail(db, job, "OutputInvalid", "no \x00 such \ud800 thing" + "x" * 10_000)
    row = jobs.get(db, "job")
    assert row.error_type == "OutputInvalid"
    assert row.error_message.startswith("no \ufffd such \ufffd thing")
    assert len(row.error_message) == 4_000
    assert row.finished_at is not None


def test_what_was_not_published_is_given_to_the_feeder_unless_claimed(db):
    jobs.insert(db, [new_job("a"), new_job("b")], sent=True)
    jobs.claim(db, "b", "worker")
    jobs.unsend(db, ["a", "b", "never heard of", "a\x00"])
    assert column(db, "a", "sent_at") is None
    assert column(db, "b", "sent_at") is not None
    jobs.unsend(db, [])


# --- cancel and retry


def test_cancelling_a_batch_ends_what_has_not_ended_and_names_who_is_waited_for(db):
    jobs.insert(
        db, [new_job(name, batch_id="batch", options={"n": 1}) for name in "abcde"], sent=True
    )
    batches.create(
        db, "batch", "default", None, {}, [new_job("fed", batch_id="batch", direct=False)]
    )
    jobs.complete(db, jobs.claim(db, "a", "worker"), new_result())
    jobs.fail(db, jobs.claim(db, "b", "worker"), "JobError", "no")
    running = jobs.claim(db, "c", "worker")
    jobs.park(db, jobs.claim(db, "d", "worker"), 100.0, "why", attempts=1, deferred=False)

    assert jobs.cancel(db, "batch") == 4

    told = feed.untold(db, "summarize", 9)
    assert [row.job_id for row in told] == ["c", "d", "e"]
    assert told[0].options == {"n": 1}
    jobs.unsend(db, ["c"])  # it could not be sent
    assert [row.job_id for row in feed.untold(db, "summarize", 9)] == ["c"]
    assert [state(db, name).value for name in "abcde"] == [
        "completed",
        "failed",
        *["cancelled"] * 3,
    ]
    assert jobs.get(db, "c").error_type == "JobCancelled"
    assert not jobs.complete(db, running, new_result())
    assert jobs.cancel(db, "batch") == 0


def test_cancelling_what_waits_lets_paid_work_end_and_what_is_given_back_ends_with_its_batch(db):
    names = ["done", "parked", "released", "orphan", "queued"]
    batches.create(
        db,
        "batch",
        "default",
        None,
        {},
        [new_job(name, batch_id="batch", direct=False) for name in names],
    )
    held = {name: jobs.claim(db, name, "worker") for name in names[:3]}
    assert jobs.claim(db, "orphan", "dead worker")

    assert jobs.cancel(db, "batch", running=False) == 1

    assert jobs.complete(db, held["done"], new_result())
    assert jobs.park(db, held["parked"], 9.0, "why", attempts=1, deferred=True)
    assert jobs.release(db, held["released"], attempts=0)
    workers.reap(db, 3)
    assert [state(db, name) for name in names] == [JobState.COMPLETED, *[JobState.CANCELLED] * 4]
    assert jobs.get(db, "parked").error_type == "JobCancelled"

    # One that is wanted again is wanted, although its batch was cancelled once.
    assert jobs.retry(db, "parked") == 1
    again = jobs.claim(db, "parked", "worker")
    assert jobs.release(db, again, attempts=0)
    assert state(db, "parked") is JobState.QUEUED


def test_a_worker_learns_which_of_its_jobs_were_cancelled(db):
    for name in "abc":
        claimed(db, name)
    claimed(db, "other", "another worker")
    jobs.insert(db, [new_job("queued")], sent=True)
    for name in ("a", "b", "other", "queued"):
        jobs.cancel(db, name)
    change(db, "b", finished_at=db.now() - 10_000)
    assert jobs.running_cancelled(db, "worker") == ["a"]


def test_what_a_worker_holds_can_be_asked_and_given_back(db):
    claimed(db, "a")
    claimed(db, "b", "another worker")
    assert jobs.running(db, "worker") == {"a"}
    job = jobs.held(db, "worker", "a")
    assert (job.job_id, job.fence) == ("a", 1)
    assert jobs.release(db, job, attempts=job.attempts - 1)
    assert jobs.running(db, "worker") == set()
    assert jobs.held(db, "worker", "a") is jobs.held(db, "worker", "b") is None


def test_retrying_a_batch_queues_what_failed_or_was_cancelled_from_the_start(db):
    batches.create(
        db,
        "batch",
        "default",
        "summarize",
        {},
        [new_job(name, batch_id="batch", direct=False) for name in "abc"],
    )
    jobs.complete(db, jobs.claim(db, "a", "worker"), new_result())
    failed = jobs.claim(db, "b", "worker")
    jobs.fail(db, failed, "JobError", "no")
    change(db, "b", crashes=2)
    jobs.cancel(db, "batch")

    assert jobs.retry(db, "batch") == 2
    row = jobs.get(db, "b")
    assert (row.state, row.attempts, row.crashes) == (JobState.QUEUED, 0, 0)
    assert (row.error_type, row.error_message, row.finished_at) == (None, None, None)
    assert column(db, "b", "sent_at") is None
    assert state(db, "a") is JobState.COMPLETED
    assert {row.job_id for row in feed.fill(db, "summarize", 10, 600.0)} == {"b", "c"}
    again = jobs.claim(db, "b", "worker")
    assert again.fence > failed.fence
    assert not jobs.complete(db, failed, new_result())
    assert jobs.retry(db, "a") == 0


def test_retrying_the_failed_ones_only_leaves_what_was_cancelled(db):
    failed = claimed(db, "failed", batch_id="batch", direct=False)
    jobs.fail(db, failed, "JobError", "no")
    jobs.insert(db, [new_job("cancelled", batch_id="batch", direct=False)], sent=False)
    jobs.cancel(db, "batch")
    assert jobs.retry(db, "batch", failed_only=True) == 1
    assert (state(db, "failed"), state(db, "cancelled")) == (JobState.QUEUED, JobState.CANCELLED)
    # What is queued again is not ended by the cancelling of before, when it is given back.
    jobs.release(db, jobs.claim(db, "failed", "worker"), attempts=0)
    assert state(db, "failed") is JobState.QUEUED
    assert jobs.retry(db, "cancelled", failed_only=True) == 0
    assert jobs.retry(db, "batch") == 1


def test_a_single_job_is_cancelled_and_retried_by_its_id(db):
    jobs.insert(db, [new_job("a", batch_id="g"), new_job("b", batch_id="g")], sent=True)
    assert jobs.cancel(db, "a") == 1
    assert state(db, "b") is JobState.QUEUED
    assert jobs.retry(db, "a") == 1


@pytest.mark.parametrize("verb", [jobs.cancel, jobs.retry])
def test_an_id_of_nothing_is_unknown(db, verb):
    with pytest.raises(UnknownJob, match="nobody"):
        verb(db, "nobody")


def test_a_batch_larger_than_a_chunk_is_cancelled_and_retried_whole(db, monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK", 7)
    rows = [new_job(str(n), batch_id="batch", direct=False) for n in range(23)]
    batches.create(db, "batch", "default", "summarize", {}, rows)
    assert jobs.cancel(db, "batch") == 23
    assert jobs.retry(db, "batch") == 23
    assert batches.status(db, "batch").queued == 23


def test_another_process_writes_between_two_chunks_of_a_cancelled_batch(
    sqlite_file, tmp_path, monkeypatch
):
    path = shutil.copy(sqlite_file, tmp_path)
    db, other = Database(f"sqlite:///{path}"), Database(f"sqlite:///{path}")
    rows = [new_job(str(n), batch_id="batch", direct=False) for n in range(9)]
    batches.create(db, "batch", "default", "summarize", {}, rows)
    monkeypatch.setattr(jobs, "CHUNK", 1)
    began, written = threading.Event(), threading.Event()
    written_at_commit = []

    @sa.event.listens_for(db._engine, "commit")
    def take_long(_connection):
        written_at_commit.append(written.is_set())
        began.set()
        written.wait(0.3)

    def write():
        assert began.wait(10)
        jobs.insert(other, [new_job("another")], sent=True)
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert jobs.cancel(db, "batch") == 9
    writer.join()
    assert written_at_commit[-1]
    db.close()
    other.close()


def test_many_rows_moved_from_all_sides_at_once_never_lock_each_other_out(db):
    rows = [new_job(str(n), batch_id="batch", direct=False) for n in range(120)]
    batches.create(db, "batch", "default", "summarize", {}, rows)
    register(db)

    def work():
        for row in feed.fill(db, "summarize", 40, 600.0):
            job = jobs.claim(db, row.job_id, "worker")
            if job is not None:
                jobs.park(db, job, 0.0, "why", attempts=0, deferred=True)

    at_once(
        [
            work,
            work,
            lambda: [feed.wake_due(db, 10) for _ in range(10)],
            lambda: jobs.unsend(db, [str(n) for n in reversed(range(120))]),
            lambda: jobs.cancel(db, "batch"),
            lambda: jobs.cancel(db, "batch"),
            lambda: jobs.retry(db, "batch"),
        ]
    )
    found = batches.status(db, "batch")
    assert found.total == 120
    assert found.running == 0
