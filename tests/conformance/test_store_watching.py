"""What watching asks of the store: times, what waits, who would have to serve it, what was answered."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from support.rows import change, claimed, new_call, new_job

from llmtasks.jobs import JobState
from llmtasks.messages import Usage
from llmtasks.store import batches, calls, jobs


def batch(db, batch_id="batch", count=3, **values):
    rows = [
        new_job(f"{batch_id}-{n}", batch_id=batch_id, direct=False, **values) for n in range(count)
    ]
    batches.create(db, batch_id, "default", "summarize", {}, rows)


def test_times_of_a_batch_and_of_a_job(db):
    batch(db)
    running = batches.times(db, "batch")
    assert running.ended_at is None
    assert 0 <= running.now - running.submitted_at < 10
    for n, state in enumerate((JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)):
        change(db, f"batch-{n}", state=state.value, finished_at=running.now + n)
    assert batches.times(db, "batch").ended_at == running.now + 2
    assert batches.times(db, "batch-1").ended_at == running.now + 1
    assert batches.times(db, "nothing") is None
    assert batches.times(db, "\0") is None


def test_the_newest_batch_may_be_a_group(db):
    assert batches.newest(db) is None
    batch(db, "first")
    jobs.insert(db, [new_job("member", batch_id="a-group")], sent=True)
    assert batches.newest(db) == "a-group"


def test_task_types_of_what_has_not_ended(db):
    mixed = [
        new_job("one", batch_id="group"),
        new_job("two", batch_id="group", task_type="translate"),
    ]
    jobs.insert(db, mixed, sent=True)
    assert batches.open_task_types(db, "group") == ["summarize", "translate"]
    change(db, "one", state=JobState.COMPLETED.value)
    assert batches.open_task_types(db, "group") == ["translate"]
    assert batches.open_task_types(db, "two") == ["translate"]
    assert batches.open_task_types(db, "one") == []
    assert batches.open_task_types(db, "nothing") == []


def test_when_the_first_waiting_job_is_tried_again(db):
    batch(db)
    assert batches.next_due_s(db, "batch") is None
    now = db.now()
    change(db, "batch-0", state="waiting", not_before=now + 50)
    change(db, "batch-1", state="waiting", not_before=now + 20)
    change(db, "batch-2", state="completed", not_before=now + 5)
    assert batches.next_due_s(db, "batch") == pytest.approx(20, abs=3)
    assert batches.next_due_s(db, "batch-0") == pytest.approx(50, abs=3)
    change(db, "batch-1", not_before=now - 5)
    assert batches.next_due_s(db, "batch") < 0


def test_recent_answers_by_provider(db):
    job = claimed(db)
    usage = Usage(input_tokens=100, output_tokens=7)
    calls.record(
        db,
        job,
        [
            new_call("new", usage=usage),
            new_call("uncounted", usage=None),
            new_call("minutes ago", usage=usage),
            new_call("long ago", usage=usage),
            new_call("failed", outcome="ProviderTimeout", usage=None, answer=None),
            new_call("another", provider="spare", usage=usage),
        ],
    )
    for call_id, ago in (("minutes ago", 120), ("long ago", 7_200)):
        with db.write() as connection:
            connection.execute(
                sa.text(
                    "UPDATE provider_calls SET created_at = created_at - :ago WHERE call_id = :i"
                ),
                {"ago": ago, "i": call_id},
            )
    recent = calls.recent(db, 3_600.0, 100)
    assert recent.seconds == 3_600.0
    assert recent.by_provider == {
        "openai": calls.Answered(
            calls=3, minute_calls=2, minute_input_tokens=100, minute_output_tokens=7
        ),
        "spare": calls.Answered(
            calls=1, minute_calls=1, minute_input_tokens=100, minute_output_tokens=7
        ),
    }


def test_recent_answers_say_over_how_long_they_were_counted(db):
    assert calls.recent(db, 3_600.0, 3).by_provider == {}
    calls.record(db, claimed(db), [new_call(f"call-{n}") for n in range(5)])
    recent = calls.recent(db, 3_600.0, 3)
    assert recent.by_provider["openai"].calls == 3
    assert recent.seconds < 60
