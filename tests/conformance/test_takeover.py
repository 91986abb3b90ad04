"""Who takes over from a worker whose lease has run out, and when nobody does yet."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from support.databases import Postgres
from support.rows import claimed, new_result, register

from llmtasks.jobs import JobState
from llmtasks.settings import Delivery, Settings
from llmtasks.store import engine, jobs, workers
from llmtasks.store.engine import Database
from llmtasks.store.workers import Reaped
from workers import maintenance
from workers.maintenance import BEATS_PER_LEASE, Maintenance

LEASE_S = 50.0
BEAT_S = LEASE_S / BEATS_PER_LEASE


class Clock:
    """Of one process, turned by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(maintenance, "time", turned)
    return turned


@pytest.fixture
def of_worker(db, clock) -> Maintenance:
    register(db)
    found = Maintenance(
        db=db,
        executor=SimpleNamespace(active=frozenset(), cancel=lambda _job_ids: None),
        fleet=None,
        loop=SimpleNamespace(answers=lambda _within_s: True),
        settings=Settings(delivery=Delivery(lease_s=LEASE_S)),
        worker_id="worker",
        register=lambda: register(db),
        task_types=[],
    )
    clock.now += BEAT_S
    return found


@pytest.fixture
def dead(db):
    """A worker whose lease has run out, with a job in its hands."""
    register(db, "dead", lease_s=-1.0)
    claimed(db, "job", "dead")


def beats_until_taken(db, clock, of_worker) -> int:
    for number in range(1, 10):
        of_worker.beat()
        if jobs.get(db, "job").state is JobState.QUEUED:
            return number
        clock.now += BEAT_S
    raise AssertionError("never")


def test_the_jobs_of_the_dead_are_taken_with_the_next_beat(db, clock, of_worker, dead):
    assert beats_until_taken(db, clock, of_worker) == 1


@pytest.mark.parametrize(
    ("leases", "lost"),
    [(0.5, False), (2.0, True), (0.0, True)],
    ids=["stopped", "stopped for long", "suspended, with its clock"],
)
def test_who_was_stopped_takes_nothing_before_others_could_renew_what_it_may_have_held_up(
    db, clock, of_worker, dead, leases, lost
):
    """A process stopped within a transaction keeps everyone waiting who needs its rows."""
    clock.now += leases * LEASE_S
    if lost:  # others have taken over from it
        workers.remove(db, "worker")
    assert beats_until_taken(db, clock, of_worker) == 3


# --- PostgreSQL, where somebody may hold single rows


@pytest.fixture
def pg(postgres: Postgres, monkeypatch):
    """A database in which waiting for somebody's row is an error soon."""
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 1.0)
    with postgres.database() as url:
        database = Database(url)
        yield database
        database.close()


def test_of_the_dead_all_is_taken_but_what_somebody_holds_just_then(pg):
    """Who waited would renew no lease of its own meanwhile, and all that wait would be taken for dead."""
    register(pg, "dead", lease_s=-1.0)
    for name in "abc":
        held = claimed(pg, name, "dead")
    with pg.write() as stopped:
        stopped.execute(sa.text("SELECT 1 FROM jobs WHERE job_id = 'c' FOR UPDATE"))
        assert workers.reap(pg, 3) == Reaped(requeued=2, failed=0, untold=0, workers=1)
        assert workers.reap(pg, 3) == Reaped(requeued=0, failed=0, untold=0)
    assert jobs.complete(pg, held, new_result()), (
        "what it held it may end: nobody else has begun it"
    )
    assert workers.reap(pg, 3).requeued == 0


def test_what_was_held_then_is_taken_once_it_is_free(pg):
    register(pg, "dead", lease_s=-1.0)
    claimed(pg, "a", "dead")
    with pg.write() as stopped:
        stopped.execute(sa.text("SELECT 1 FROM jobs WHERE job_id = 'a' FOR UPDATE"))
        assert workers.reap(pg, 3) == Reaped(requeued=0, failed=0, untold=0, workers=1)
    assert workers.reap(pg, 3).requeued == 1


def test_a_lease_that_somebody_holds_is_looked_at_again(pg):
    register(pg, "dead", lease_s=-1.0)
    claimed(pg, "a", "dead")
    with pg.write() as stopped:
        stopped.execute(sa.text("SELECT 1 FROM workers WHERE worker_id = 'dead' FOR UPDATE"))
        assert workers.reap(pg, 3) == Reaped(requeued=0, failed=0, untold=0)
    assert workers.reap(pg, 3) == Reaped(requeued=1, failed=0, untold=0, workers=1)
