"""What is old goes, and nothing that somebody may still need."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from support.rows import change, claimed, new_call, new_document, new_job, new_result
from support.stack import eventually

from llmtasks.errors import UnknownJob
from llmtasks.executor import Executor, Watch
from llmtasks.jobs import Elsewhere, JobState
from llmtasks.settings import Retention, Settings
from llmtasks.store import batches, calls, documents, jobs, results, retention
from llmtasks.store.retention import DAY_S, Removed
from llmtasks.store.tables import batches as batches_table
from llmtasks.store.tables import contents, outbox, provider_calls, removals
from llmtasks.store.tables import documents as documents_table
from llmtasks.store.tables import jobs as jobs_table
from llmtasks.store.tables import results as results_table

KEEP_DAYS = 2.0
KEEP = Retention(
    answers_days=KEEP_DAYS, jobs_days=KEEP_DAYS, texts_days=KEEP_DAYS, documents_days=KEEP_DAYS
)
OLD_S = KEEP_DAYS * DAY_S
#: Days; on both sides of what is kept.
AGES = (0.1, 1.9, 2.1, 9.0)


def keys(db, *columns):
    with db.read() as connection:
        rows = connection.execute(sa.select(*columns))
        return {row[0] if len(columns) == 1 else tuple(row) for row in rows}


def insert(db, table, rows):
    if rows:
        with db.write() as connection:
            connection.execute(sa.insert(table), rows)


def tidied(db, keep=KEEP):
    return sum(retention.tidy(db, keep), Removed())


class World:
    """Rows of every fate and age, and what the rules say of each, said once more."""

    def __init__(self, seed, now):
        dice = random.Random(seed)
        self.batches = {f"batch-{n}": now - dice.choice(AGES) * DAY_S for n in range(12)}
        # A batch is as old as its oldest job; most jobs of one have its age.
        self.jobs = [
            self._job(dice, now, f"{batch}-{n}", batch, dice.random() < 0.85)
            for batch in self.batches
            for n in range(dice.randrange(4))
        ] + [self._job(dice, now, f"single-{n}", None, dice.random() < 0.5) for n in range(40)]
        self.outbox = [job["job_id"] for job in self.jobs if job["to_deliver"]]
        self.documents = {
            f"doc-{n}": (f"hash-{dice.randrange(16)}", now - dice.choice(AGES) * DAY_S)
            for n in range(10)
        }
        self.contents = {
            f"hash-{n}": dice.choice([None, *(now - age * DAY_S for age in AGES)])
            for n in range(24)
        }
        self.now = now

    @staticmethod
    def _job(dice, now, job_id, batch, dull):
        state = dice.choice(["completed", "failed", "cancelled"] if dull else list(JobState))
        ended = state in {"completed", "failed", "cancelled"}
        age = 9.0 if dull else dice.choice(AGES)
        return {
            "job_id": job_id,
            "batch_id": batch,
            "tenant": "default",
            "task_type": "summarize",
            "document_id": f"doc-{dice.randrange(14)}",
            "document_hash": dice.choice([None, f"hash-{dice.randrange(24)}"]),
            "options": {},
            "priority": 0,
            "fresh": False,
            "direct": dice.random() < 0.5,
            "state": str(state),
            "fence": 1,
            "attempts": 1,
            "deferrals": 0,
            "crashes": 0,
            "created_at": now - 9.5 * DAY_S,
            "finished_at": now - age * DAY_S if ended else None,
            "sent_at": None if not dull and dice.random() < 0.3 else now - age * DAY_S,
            "to_deliver": ended and not dull and dice.random() < 0.3,
        }

    def fill(self, db):
        insert(
            db,
            batches_table,
            [
                {"batch_id": key, "tenant": "default", "options": {}, "created_at": at}
                for key, at in self.batches.items()
            ],
        )
        columns = [{k: v for k, v in job.items() if k != "to_deliver"} for job in self.jobs]
        insert(db, jobs_table, columns)
        insert(db, outbox, [{"job_id": key, "due_at": 1.0, "tries": 1} for key in self.outbox])
        for job in self.jobs:
            call = {
                "call_id": job["job_id"],
                "job_id": job["job_id"],
                "batch_id": job["batch_id"],
                "fence": 1,
                "provider": "p",
                "model": "m",
                "latency_s": 1.0,
                "outcome": "ok",
                "answer": "words",
                "created_at": job["finished_at"] or self.now - 9 * DAY_S,
            }
            insert(db, provider_calls, [call])
        insert(
            db,
            contents,
            [
                {"tenant": "default", "content_hash": k, "text": "t", "size": 1, "replaced_at": at}
                for k, at in self.contents.items()
            ],
        )
        insert(
            db,
            documents_table,
            [
                {
                    "tenant": "default",
                    "document_id": key,
                    "content_hash": digest,
                    "created_at": at,
                    "updated_at": at,
                }
                for key, (digest, at) in self.documents.items()
            ],
        )

    def _old(self, at):
        return at is not None and at < self.now - OLD_S

    def _stays(self, job):
        is_open = job["state"] in {"queued", "running", "waiting"}
        untold = job["direct"] and job["sent_at"] is None
        young = not self._old(job["finished_at"])
        rang = job["sent_at"] is not None and not self._old(job["sent_at"])
        return is_open or untold or young or rang or job["job_id"] in self.outbox

    def kept(self):
        """Ids of the jobs, batches, documents and texts that must be there afterwards."""
        staying = {job["batch_id"] for job in self.jobs if self._stays(job)}
        kept_batches = {k for k, at in self.batches.items() if k in staying or not self._old(at)}
        left = [
            job
            for job in self.jobs
            if (self._stays(job) if job["batch_id"] is None else job["batch_id"] in kept_batches)
        ]
        needy = [job for job in left if job["state"] != "completed"]
        named = {job["document_id"] for job in needy}
        kept_documents = {
            k for k, (_, at) in self.documents.items() if k in named or not self._old(at)
        }
        current = {self.documents[key][0] for key in kept_documents}
        given_up = {self.documents[key][0] for key in self.documents} - current
        pinned = {job["document_hash"] for job in needy}
        kept_texts = {
            k
            for k, at in self.contents.items()
            # Those that their document has just given up begin to wait now.
            if k in current | pinned | given_up or not self._old(at)
        }
        return {job["job_id"] for job in left}, kept_batches, kept_documents, kept_texts


@pytest.mark.parametrize("seed", range(4))
def test_what_is_old_goes_and_nothing_open_pinned_undelivered_or_younger(db, seed, monkeypatch):
    monkeypatch.setattr(retention, "CHUNK", 7)
    monkeypatch.setattr(calls, "CHUNK", 7)
    world = World(seed, db.now())
    world.fill(db)
    kept_jobs, kept_batches, kept_documents, kept_texts = world.kept()

    announced = retention.due(db, KEEP)
    removed = tidied(db)

    assert keys(db, jobs_table.c.job_id) == kept_jobs
    assert keys(db, batches_table.c.batch_id) == kept_batches
    assert keys(db, documents_table.c.document_id) == kept_documents
    assert keys(db, contents.c.content_hash) == kept_texts
    assert keys(db, provider_calls.c.job_id) == kept_jobs
    assert keys(db, outbox.c.job_id) == set(world.outbox)
    assert keys(db, removals.c.batch_id) == set()
    assert removed.jobs == announced.jobs == len(world.jobs) - len(kept_jobs)
    assert removed.batches == announced.batches == len(world.batches) - len(kept_batches)
    assert removed.answers == announced.answers
    assert not tidied(db), "there is nothing to do twice"


def test_by_default_only_answers_of_ended_jobs_go(db):
    world = World(5, db.now())
    world.fill(db)
    before = [keys(db, c) for c in (jobs_table.c.job_id, contents.c.content_hash)]
    removed = tidied(db, Retention())
    assert removed == Removed(answers=removed.answers)
    assert removed.answers > 0
    assert [keys(db, c) for c in (jobs_table.c.job_id, contents.c.content_hash)] == before


def ended_batch(db, count=5):
    new = [new_job(f"job-{n}", batch_id="batch", direct=False) for n in range(count)]
    batches.create(db, "batch", "default", "summarize", {}, new)
    for job in new:
        held = jobs.claim(db, job.job_id, "worker")
        calls.record(db, held, [new_call(job.job_id)])
        assert jobs.complete(db, held, new_result(answer_key=job.job_id))
        change(db, job.job_id, finished_at=1.0, sent_at=1.0)
    with db.write() as connection:
        connection.execute(sa.update(batches_table).values(created_at=1.0))


def test_a_batch_is_never_seen_in_part_and_a_killed_removal_goes_on(db, monkeypatch):
    monkeypatch.setattr(retention, "CHUNK", 2)
    ended_batch(db)
    passing = retention.tidy(db, KEEP)
    for removed in passing:
        status = batches.status(db, "batch")
        assert status is None or status.total == 5
        if removed.jobs:
            break
    passing.close()  # the worker was killed
    assert len(keys(db, jobs_table.c.job_id)) == 3
    assert batches.status(db, "batch") is None

    assert retention.due(db, KEEP) == tidied(db) == Removed(jobs=3)
    assert keys(db, removals.c.batch_id) == keys(db, results_table.c.job_id) == set()


def test_a_job_that_is_retried_while_its_batch_goes_is_not_lost(db):
    ended_batch(db)
    change(db, "job-3", state="failed")
    assert sum(retention.remove_batches(db, OLD_S)) == 1
    assert jobs.retry(db, "job-3") == 1
    assert sum(retention.finish_removals(db, OLD_S)) == 4
    assert jobs.get(db, "job-3").state is JobState.QUEUED
    jobs.cancel(db, "job-3")
    change(db, "job-3", finished_at=1.0, sent_at=1.0)
    assert tidied(db).jobs == 1
    assert keys(db, removals.c.batch_id) == set()


def test_a_batch_is_not_removed_under_whoever_is_retrying_it(db, monkeypatch):
    ended_batch(db)
    for number in range(5):
        change(db, f"job-{number}", state="failed")
    sweep = jobs._sweep

    def removed_between(*given):
        assert sum(retention.remove_batches(db, OLD_S)) == 0
        return sweep(*given)

    monkeypatch.setattr(jobs, "_sweep", removed_between)
    monkeypatch.setattr(jobs, "CHUNK", 2)
    assert jobs.retry(db, "batch") == 5
    assert batches.status(db, "batch").queued == 5


def test_a_batch_that_was_removed_is_not_retried(db):
    ended_batch(db)
    change(db, "job-3", state="failed")
    assert sum(retention.remove_batches(db, OLD_S)) == 1
    with pytest.raises(UnknownJob):
        jobs.retry(db, "batch")


def test_a_batch_is_not_removed_under_whoever_is_adding_to_it(db, monkeypatch):
    if db.is_sqlite:
        pytest.skip("SQLite has one writer")
    ended_batch(db)
    add_rows = jobs.add_rows

    def removed_between(*given, **options):
        assert sum(retention.remove_batches(db, OLD_S)) == 0
        add_rows(*given, **options)

    monkeypatch.setattr(jobs, "add_rows", removed_between)
    new = [new_job("new", batch_id="batch", direct=False)]
    assert batches.create(db, "batch", "default", "summarize", {}, new) == 6
    assert batches.status(db, "batch").queued == 1


def age_texts(db):
    with db.write() as connection:
        connection.execute(
            sa.update(contents).where(contents.c.replaced_at.is_not(None)).values(replaced_at=1.0)
        )


def texts(db):
    return keys(db, contents.c.text)


def test_a_replaced_text_goes_when_the_last_job_that_needs_it_has_completed(db):
    documents.add(db, [new_document(text="old")])
    job = claimed(db)
    documents.add(db, [new_document(text="new")])
    age_texts(db)
    assert not tidied(db, Retention(texts_days=1))
    assert documents.load(db, "default", "doc", job.document_hash).text == "old"
    jobs.fail(db, job, "JobError", "may be retried")
    assert not tidied(db, Retention(texts_days=1))
    jobs.retry(db, "job")
    jobs.complete(db, jobs.claim(db, "job", "worker"), new_result())
    assert tidied(db, Retention(texts_days=1)).texts == 1
    assert texts(db) == {"new"}


def test_a_text_that_a_document_has_again_or_another_one_has_stays(db):
    documents.add(db, [new_document("a", "one"), new_document("b", "one")])
    documents.add(db, [new_document("a", "two")])
    documents.add(db, [new_document("a", "three")])
    documents.add(db, [new_document("a", "two")])
    age_texts(db)
    assert tidied(db, Retention(texts_days=1)).texts == 1
    assert texts(db) == {"one", "two"}
    documents.add(db, [new_document("b", "two")])
    age_texts(db)
    assert tidied(db, Retention(texts_days=1)).texts == 1


def test_a_text_is_not_removed_under_whoever_is_adding_it(db):
    if db.is_sqlite:
        pytest.skip("SQLite has one writer")
    documents.add(db, [new_document("a", "old")])
    documents.add(db, [new_document("a", "new")])
    age_texts(db)
    with db.write() as connection:
        documents._add(connection, [new_document("b", "old")])
        assert not sum(retention.remove_texts(db, DAY_S))
    assert texts(db) == {"old", "new"}
    assert documents.load(db, "default", "b").text == "old"


def test_a_removed_document_is_added_again_like_a_new_one(db):
    documents.add(db, [new_document()])
    with db.write() as connection:
        connection.execute(sa.update(documents_table).values(updated_at=1.0))
    assert tidied(db).documents == 1
    assert documents.add(db, [new_document()]) == ["added"]
    age_texts(db)
    assert not tidied(db)


def test_removing_documents_waits_for_whoever_changes_them_and_not_in_a_circle(db):
    if db.is_sqlite:
        pytest.skip("SQLite has one writer")
    documents.add(db, [new_document(name, "old") for name in "ab"] + [new_document("c", "new")])
    with db.write() as connection:
        name = documents_table.c.document_id
        aged = sa.update(documents_table).values(updated_at=sa.case((name == "b", 1.0), else_=2.0))
        connection.execute(aged.where(name != "c"))
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def is_waiting():
        with db.read() as connection:
            return connection.execute(waiting).scalar_one()

    now = db.now()
    with ThreadPoolExecutor(1) as pool:
        with db.write() as connection:
            documents._update(connection, [new_document("a", "new")], now)
            removing = pool.submit(lambda: sum(retention.remove_documents(db, DAY_S)))
            eventually(is_waiting, "the removal waits")
            documents._update(connection, [new_document("b", "new")], now)
        assert removing.result(30) == 0
    assert documents.load(db, "default", "b").text == "new"


def test_of_all_who_ask_one_gets_the_turn(db):
    assert [retention.turn(db, 60.0) for _ in range(3)] == [True, False, False]
    assert retention.turn(db, 0.0)


@pytest.mark.parametrize(
    ("age_s", "days", "may"),
    [
        (2.1 * DAY_S, 2.0, True),
        # The database's clock may be ahead of those of producer and worker.
        (2.0 * DAY_S - 1_800.0, 2.0, True),
        (1.9 * DAY_S, 2.0, False),
        (999 * DAY_S, None, False),
    ],
)
def test_from_when_on_a_message_may_have_outlived_its_row(age_s, days, may):
    assert retention.may_be_removed(1e9, 1e9 + age_s, days) is may


def test_a_message_that_outlived_its_job_does_not_run_it_once_more(db):
    settings = Settings(retention=Retention(jobs_days=1))
    executor = Executor(
        db=db, gateway=None, loop=None, settings=settings, worker_id="worker", converters=None
    )
    late = executor.run(new_job(), Watch(), sent_at=time.time() - 2 * DAY_S)
    assert late == Elsewhere()
    assert jobs.get(db, "job") is None
    assert results.get(db, "job") is None
