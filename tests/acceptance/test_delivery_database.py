"""A database that is away, that leaves a commit in doubt, deadlocks or is full: what was paid is kept."""

from __future__ import annotations

import resource
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from support.databases import Postgres, PostgresCluster, postgres_cluster, started
from support.delivery import calls_by_question, full, note, rows, settled, short
from support.proxy import Proxy
from support.stack import PATIENCE_S, Stack, eventually, provider

from llmtasks.store import workers as leases
from llmtasks.store.engine import SQLITE_FILE
from llmtasks.store.tables import results

SLOTS = 8


@dataclass(frozen=True)
class Away:
    """An installation whose workers reach their PostgreSQL, which may crash, through a proxy."""

    stack: Stack
    cluster: PostgresCluster
    server: Postgres
    proxy: Proxy

    def divert(self) -> None:
        """Send who starts from now on through the proxy; the test itself goes straight there."""
        url = self.stack.database.url.set(port=self.proxy.port)
        self.stack.configure(database={"url": url.render_as_string()})


@pytest.fixture(scope="module")
def server():
    with postgres_cluster() as cluster:
        yield cluster, started(cluster)


@pytest.fixture
def away(make_stack, sim, server):
    cluster, postgres = server
    with Proxy(postgres.port) as proxy, postgres.database() as url:
        stack = make_stack(
            providers=[provider(sim.openai_url)], settings={"database": {"url": url}}
        )
        yield Away(stack, cluster, postgres, proxy)


def paid_once(stack, sim, batch, jobs):
    """Every job has its one result, for one answer."""
    status = stack.finished(batch, timeout=4 * PATIENCE_S)
    assert (status["completed"], status["failed"]) == (jobs, 0)
    assert set(calls_by_question(sim).values()) == {1}
    assert sim.stats()["answered"] == jobs
    with stack.database.read() as connection:
        stored = connection.execute(sa.select(sa.func.count()).select_from(results)).scalar_one()
    assert stored == jobs
    settled(stack.broker_url)


def test_a_commit_in_doubt_and_a_deadlock_store_an_answer_once_and_buy_none_again(away, sim):
    stack, proxy = away.stack, away.proxy
    sim.latency(2.0)
    jobs = len(stack.documents(160))
    batch = stack.submit("summarize", "--all")
    name = stack.database.url.database
    away.server.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '3s'")
    away.divert()
    worker = stack.worker(concurrency=SLOTS)
    eventually(lambda: sim.stats()["in_flight"] == SLOTS, "it is at work")
    for _ in range(15):
        doubts, done = proxy.lost, stack.status(batch)["completed"]
        proxy.lose_reply(lambda data: b"COMMIT" in data)
        eventually(lambda doubts=doubts: proxy.lost > doubts, "a commit is in doubt")
        eventually(lambda done=done: stack.status(batch)["completed"] > done, "it goes on")
    victim = _deadlocked(stack, worker, batch)
    sim.latency(0.0)
    paid_once(stack, sim, batch, jobs)
    assert stack.job(victim).state == "completed"
    assert worker.running
    assert "Traceback" not in worker.output()


def _deadlocked(stack, worker, batch):
    """Make the worker the victim of a deadlock about a running job; the job."""
    with _connected(stack) as connection:
        # The worker looks for a deadlock before we do, finds it, and is ended.
        connection.execute("SET deadlock_timeout = '60s'")
        held = _held_up(stack, connection, batch)
        connection.execute("SELECT 1 FROM jobs WHERE job_id = %s FOR UPDATE", [held])
        connection.rollback()
        eventually(lambda: "deadlock" in worker.output(), "the worker was the victim")
        return held


def _connected(stack):
    url = stack.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url)


def _held_up(stack, connection, batch):
    """Hold up the transaction that ends a job, in its middle: it has the job's row and waits for ours of its
    result. The job.
    """
    while True:
        (held,) = eventually(
            lambda: connection.execute(
                "SELECT job_id FROM jobs WHERE state = 'running' AND batch_id = %s LIMIT 1",
                [batch],
            ).fetchone(),
            "a job runs",
        )
        connection.execute(
            "INSERT INTO results (job_id, tenant, created_at, output, input_tokens,"
            " output_tokens, cached_input_tokens, cached, seconds)"
            " SELECT job_id, tenant, 0, '{}', 0, 0, 0, false, 0 FROM jobs"
            " WHERE job_id = %s AND state = 'running' ON CONFLICT DO NOTHING",
            [held],
        )
        eventually(
            lambda held=held: _waits(stack) or stack.job(held).state != "running", "it waits for us"
        )
        if _waits(stack):
            return held
        connection.rollback()


def _waits(stack):
    with stack.database.read() as connection:
        return connection.execute(
            sa.text(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        ).scalar_one()


def test_a_process_that_is_frozen_within_a_transaction_costs_no_other_its_lease(away, sim):
    """Who takes over from it waits for none of the rows that it holds."""
    stack = away.stack
    sim.latency(1.0)
    jobs = len(stack.documents(24))
    batch = stack.submit("summarize", "--all")
    frozen = stack.worker(concurrency=4)
    with _connected(stack) as connection:
        _held_up(stack, connection, batch)
        asked = sim.stats()["requests"]
        sim.latency(5.0)
        eventually(
            lambda: (now := sim.stats())["requests"] >= asked + 3 and now["in_flight"] == 3,
            "its other slots are in the middle of long calls",
        )
        frozen.signal(signal.SIGSTOP)
        connection.rollback()
    sim.latency(0.1)
    other = stack.worker(concurrency=4)
    alive = []

    def all_but_that_one():
        alive.append(other.pid in {worker.pid for worker in leases.live(stack.database)})
        return stack.status(batch)["completed"] >= jobs - 1

    eventually(all_but_that_one, "all but that one are done")
    assert "took-over" in other.output()
    assert all(alive), "its own lease was renewed meanwhile"
    frozen.signal(signal.SIGCONT)
    assert stack.finished(batch)["completed"] == jobs
    assert sim.stats()["requests"] <= jobs + 4, "only calls of the frozen one are repeated"
    eventually(lambda: "lease-lost" in frozen.output(), "it knows that others took its jobs")
    assert "took-over" not in frozen.output()


@pytest.mark.parametrize(("away_s", "jobs", "workers"), [short(5.0, 80, 1), full(60.0, 600, 2)])
def test_a_database_that_is_away_delays_jobs_and_costs_no_answer(away, sim, away_s, jobs, workers):
    """It refuses; it takes connections and is silent; its server crashes and comes again."""
    stack, proxy = away.stack, away.proxy
    sim.latency(2.0)
    stack.documents(jobs)
    batch = stack.submit("summarize", "--all")
    assert stack.status(batch)["queued"] == jobs
    away.divert()
    at = [stack.worker(concurrency=SLOTS) for _ in range(workers)]

    def at_work():
        done = stack.status(batch)["completed"]
        eventually(lambda: stack.status(batch)["completed"] > done, "it is at work")
        eventually(lambda: sim.stats()["in_flight"] > 0, "calls are in flight")

    at_work()
    proxy.refuse()
    proxy.cut()
    _pass(away_s)
    assert sim.stats()["in_flight"] == 0
    proxy.accept()
    at_work()
    proxy.freeze()
    _pass(away_s)
    proxy.thaw()
    at_work()
    away.cluster.crash()
    _pass(away_s)
    away.cluster.start()
    sim.latency(0.0)
    paid_once(stack, sim, batch, jobs)
    for worker in at:
        assert worker.running
        assert "store-away" in worker.output()
        assert "Traceback" not in worker.output()
    spent = {tuple(row) for row in rows(stack, "attempts", "crashes", batch_id=batch)}
    note(f"attempts and crashes of the jobs: {spent}")


def _pass(seconds):
    threading.Event().wait(seconds)


@pytest.mark.parametrize("jobs", [short(60), full(600)])
def test_a_full_disk_is_told_and_everything_finishes_when_there_is_room(make_stack, sim, jobs):
    stack = make_stack(providers=[provider(sim.openai_url)])
    sim.latency(0.2)
    stack.documents(jobs)
    worker = stack.worker(concurrency=SLOTS)
    batch = stack.submit("summarize", "--all")
    eventually(lambda: stack.status(batch)["completed"] > 0, "it is at work")
    data = Path(stack.home / "data")
    # No file may grow beyond what the journal of the database has now.
    journal = (data / f"{SQLITE_FILE}-wal").stat().st_size
    assert journal > 10 * len(worker.output())
    before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (journal, resource.RLIM_INFINITY))
    eventually(lambda: "store-away" in worker.output(), "it tells that it cannot write")
    eventually(lambda: sim.stats()["in_flight"] == 0, "what was asked is answered")
    asked = sim.stats()["requests"]
    _pass(2.0)
    assert sim.stats()["requests"] == asked, "nothing more is bought meanwhile"
    assert stack.status(batch)["failed"] == 0
    (reason,) = {
        line.split("why=")[1] for line in worker.output().splitlines() if "store-away" in line
    }
    note(reason)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)
    paid_once(stack, sim, batch, jobs)
    assert worker.running
