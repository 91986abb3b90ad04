"""What is asked all the time goes through an index, in both databases, however many jobs there are."""

from __future__ import annotations

import contextlib
import re

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from support.rows import new_job, register

from llmtasks.store import (
    batches,
    calls,
    census,
    deadlines,
    feed,
    jobs,
    outbox,
    results,
    retention,
    workers,
)
from llmtasks.store.engine import Database
from llmtasks.store.feed import Lane

BATCHES, ROWS = 20, 1_000
FATES = """
UPDATE jobs SET state = 'completed', worker_id = 'worker', claimed_at = created_at,
    sent_at = created_at, finished_at = created_at + seq WHERE seq % 2 = 0;
UPDATE jobs SET state = 'running', worker_id = 'worker' WHERE seq % 997 = 1;
UPDATE jobs SET state = 'waiting', not_before = created_at - 10000 + seq
    WHERE state = 'queued' AND seq % 101 = 1;
UPDATE jobs SET sent_at = created_at - seq WHERE state = 'queued' AND seq % 103 = 1;
UPDATE jobs SET deadline_s = 9.0, deadline_at = created_at - 10000 + seq WHERE seq % 3 = 1;
INSERT INTO results (job_id, tenant, answer_key, output, input_tokens, output_tokens,
        cached_input_tokens, cached, seconds, created_at)
    SELECT job_id, tenant, 'key-' || seq, '1', 1, 1, 0, false, 1.0, created_at
    FROM jobs WHERE state = 'completed';
INSERT INTO provider_calls (call_id, job_id, fence, provider, model, latency_s, outcome, answer,
        created_at)
    SELECT job_id, job_id, 1, 'p', 'm', 1.0, 'ok', '1', created_at FROM jobs;
INSERT INTO outbox (job_id, due_at, tries)
    SELECT job_id, created_at - 10000 + seq, 0 FROM jobs WHERE state = 'completed';
UPDATE jobs SET batch_id = NULL WHERE seq % 11 = 1;
UPDATE jobs SET finished_at = created_at - 10000 WHERE batch_id IS NULL AND state = 'completed'
    AND seq % 100 < 2;
UPDATE provider_calls SET created_at = 1.0 WHERE call_id LIKE 'job-%-99';
INSERT INTO contents (tenant, content_hash, text, size, replaced_at)
    SELECT 'tenant-1', 'hash-' || seq, 'words', 5, CASE WHEN seq % 500 = 0 THEN 1.0 END FROM jobs;
INSERT INTO documents (tenant, document_id, content_hash, created_at, updated_at)
    SELECT 'tenant-1', 'doc-' || seq, 'hash-' || seq, created_at,
        CASE WHEN seq % 500 = 1 THEN 1.0 ELSE created_at END FROM jobs WHERE seq % 3 > 0
"""
HOUR_S = 3_600.0
LANE = Lane(priority=0, tenant="tenant-3", oldest_at=0.0)

#: What the workers and their users ask, and the index each has to use.
QUESTIONS = {
    "claim": (lambda db: jobs.claim(db, "job-3-500", "worker"), "job_id"),
    "status": (lambda db: batches.status(db, "batch-3"), "ix_jobs_batch_state"),
    "status of a job": (lambda db: batches.status(db, "job-3-500"), "job_id"),
    "page of rows": (lambda db: next(results.rows(db, batch_id="batch-3")), "ix_jobs_batch"),
    "answer": (lambda db: results.find(db, "tenant-3", "key"), "ix_results_answer"),
    "paid answers": (lambda db: calls.answers(db, "job-3-500"), "ix_calls_job"),
    "recent answers": (lambda db: calls.recent(db, 3_600.0, 50), "ix_calls_kept"),
    "times": (lambda db: batches.times(db, "batch-3"), "ix_jobs_batch_state"),
    "next try": (lambda db: batches.next_due_s(db, "batch-3"), "ix_jobs_"),
    "open task types": (lambda db: batches.open_task_types(db, "batch-3"), "ix_jobs_batch_state"),
    "lanes": (lambda db: feed.lanes(db, "summarize"), "ix_jobs_feed"),
    "take": (lambda db: feed.take(db, "summarize", LANE, 50), "ix_jobs_feed"),
    "depth": (lambda db: feed.depth(db, "summarize"), "ix_jobs_sent"),
    "due": (feed.wake_due, "ix_jobs_due"),
    "overdue": (deadlines.end_overdue, "ix_jobs_deadline"),
    "overdue job": (lambda db: deadlines.end_if_overdue(db, "job-3-500", "worker"), "job_id"),
    "rate": (lambda db: feed.finished_rate(db, "summarize", 5.0), "ix_jobs_finished"),
    "forgotten": (
        lambda db: feed.forgotten(db, "summarize", 5.0, queue_empty=True, limit=50),
        "ix_jobs_sent",
    ),
    "overtaken": (
        lambda db: feed.forgotten(db, "summarize", 5.0, queue_empty=False, limit=50),
        "ix_jobs_finished",
    ),
    "reap": (lambda db: workers.reap(db, 3), "ix_jobs_running"),
    "deliveries": (lambda db: outbox.claim(db, "worker", 5, 30.0), "ix_outbox_due"),
    "cancelled": (lambda db: jobs.running_cancelled(db, "worker"), "ix_jobs_ended"),
    "cancel": (lambda db: jobs.cancel(db, "batch-3"), "ix_jobs_batch"),
    "old jobs": (lambda db: next(retention.remove_jobs(db, HOUR_S)), "ix_jobs_single_ended"),
    "old documents": (
        lambda db: next(retention.remove_documents(db, HOUR_S)),
        "ix_documents_updated",
    ),
    "replaced texts": (lambda db: next(retention.remove_texts(db, HOUR_S)), "ix_contents_replaced"),
    "old answers": (lambda db: list(calls.forget_answers(db, HOUR_S)), "ix_calls_kept"),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def many(request, tmp_path_factory, sqlite_file):
    """Twenty thousand jobs: half of them ended, some running, waiting or sent."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("plans") / "many.sqlite3"
        path.write_bytes(sqlite_file.read_bytes())
        url = f"sqlite:///{path}"
        yield from filled(url)
        return
    with request.getfixturevalue("postgres").database() as url:
        yield from filled(url)


def filled(url):
    db = Database(url)
    for number in range(BATCHES):
        rows = [
            new_job(
                f"job-{number}-{n}",
                batch_id=f"batch-{number}",
                tenant=f"tenant-{number % 5}",
                direct=False,
            )
            for n in range(ROWS)
        ]
        batches.create(db, f"batch-{number}", "default", "summarize", {}, rows)
    with db.write() as connection:
        for statement in FATES.split(";"):
            connection.execute(sa.text(statement))
    register(db)
    with db.write() as connection:
        connection.execute(sa.text("ANALYZE"))
    yield db
    db.close()


def plan_of(db, question):
    """The plans of every statement that the question executes."""
    asked = asked_of(db, question)
    with db.write() as connection:
        return explained(db, connection, asked)


def asked_of(db, question):
    """The statements that the question executes."""
    asked = []

    def listen(_connection, _cursor, statement, parameters, _context, many_rows):
        if re.match(r"\s*(SELECT|UPDATE|WITH)", statement) and not many_rows:
            asked.append((statement, parameters))

    event.listen(db._engine, "before_cursor_execute", listen)
    try:
        question(db)
    finally:
        event.remove(db._engine, "before_cursor_execute", listen)
    return asked


def explained(db, connection, asked):
    """The plans of the statements; nothing of them is kept."""
    explain = "EXPLAIN QUERY PLAN " if db.is_sqlite else "EXPLAIN "
    plans = []
    for statement, parameters in asked:
        rows = connection.exec_driver_sql(explain + statement, parameters)
        plans.append("\n".join(str(row[-1]) for row in rows))
    return plans


@pytest.mark.parametrize("name", QUESTIONS)
def test_it_uses_its_index_and_never_reads_all_jobs(many, name, monkeypatch):
    # As small to these twenty thousand rows as the real ones are to a million.
    monkeypatch.setattr(results, "PAGE", 50)
    monkeypatch.setattr(jobs, "CHUNK", 50)
    question, index = QUESTIONS[name]
    plans = plan_of(many, question)
    text = "\n".join(plans)
    if many.is_sqlite:
        # A unique constraint's index has a number instead of a name.
        index = {"job_id": "job_id=?"}.get(index, index)
        assert not re.search(
            r"SCAN (jobs|results|provider_calls|outbox|documents|contents)\b(?! USING)", text
        ), text
    else:
        assert not re.search(
            r"Seq Scan on (jobs|results|provider_calls|outbox|documents|contents)", text
        ), text
    assert index in text, text


def test_counting_a_batch_reads_the_index_alone(many):
    if not many.is_sqlite:
        pytest.skip("PostgreSQL decides by its visibility map, which autovacuum keeps")
    text = "\n".join(plan_of(many, lambda db: batches.status(db, "batch-3")))
    assert "COVERING INDEX ix_jobs_batch_state" in text
    assert "COVERING INDEX ix_jobs_crashed" in text
    assert "COVERING INDEX ix_results_batch" in text
    assert "COVERING INDEX ix_calls_batch" in text


class _Enough(Exception):
    """Rolls back what a plan was asked under."""


MOSTLY_ENDED = "UPDATE jobs SET state = 'completed', finished_at = 2.0 WHERE seq % 10 > 0"


def test_the_census_reads_what_is_open_and_never_what_has_ended(many):
    asked = asked_of(many, census.open_jobs)
    with contextlib.suppress(_Enough), many.write() as connection:
        connection.execute(sa.text(MOSTLY_ENDED))
        connection.execute(sa.text("ANALYZE"))
        text = "\n".join(explained(many, connection, asked))
        raise _Enough
    for index in ("ix_jobs_feed", "ix_jobs_sent", "ix_jobs_running", "ix_jobs_due"):
        assert index in text, text
    assert not re.search(r"SCAN jobs\b(?! USING)|Seq Scan on jobs", text), text


def test_lanes_stay_lanes_with_many_rows(many):
    found = feed.lanes(many, "summarize")
    assert [lane.tenant for lane in found] == [f"tenant-{n}" for n in range(5)]
