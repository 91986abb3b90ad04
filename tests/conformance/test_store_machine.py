"""Any sequence of moves: one result at most, only allowed moves, counts that add up."""

from __future__ import annotations

import shutil
import tempfile

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.rows import change, new_job, new_result, register

from llmtasks.jobs import MOVES, JobState
from llmtasks.store import batches, deadlines, feed, jobs, workers
from llmtasks.store.engine import Database
from llmtasks.store.tables import jobs as jobs_table
from llmtasks.store.tables import results as results_table

NAMES = [f"job-{number}" for number in range(4)]
WORKERS = ["one", "two"]


def test_no_sequence_of_moves_breaks_a_promise(sqlite_file):  # noqa: C901 - one machine
    class Machine(RuleBasedStateMachine):
        """Two workers, a user and maintenance; every claim ever made may act again later."""

        def __init__(self) -> None:
            super().__init__()
            self.directory = tempfile.mkdtemp()
            copy = shutil.copy(sqlite_file, self.directory)
            self.db = Database(f"sqlite:///{copy}")
            self.seen: dict[str, JobState] = {}
            self.held: list[jobs.ClaimedJob] = []
            self.ended: dict[str, int] = {}

        @initialize()
        def start(self) -> None:
            for worker_id in WORKERS:
                register(self.db, worker_id)

        @rule(name=st.sampled_from(NAMES), sent=st.booleans())
        def insert(self, name: str, *, sent: bool) -> None:
            (new,) = jobs.insert(self.db, [new_job(name, batch_id="batch")], sent=sent)
            assert new == (name not in self.seen)
            self.seen.setdefault(name, JobState.QUEUED)

        @rule(name=st.sampled_from(NAMES), worker_id=st.sampled_from(WORKERS))
        def claim(self, name: str, worker_id: str) -> None:
            job = jobs.claim(self.db, name, worker_id)
            if job is not None:
                assert job.fence > max((h.fence for h in self.held if h.job_id == name), default=0)
                self.held.append(job)

        @precondition(lambda self: self.held)
        @rule(
            data=st.data(),
            move=st.sampled_from(["complete", "fail", "park", "park long", "release"]),
        )
        def act(self, data: st.DataObject, move: str) -> None:
            job = data.draw(st.sampled_from(self.held[-6:]))
            if move == "complete":
                moved = jobs.complete(self.db, job, new_result(output=job.fence))
                if moved:
                    assert self.ended.setdefault(job.job_id, job.fence) == job.fence
            elif move == "fail":
                jobs.fail(self.db, job, "JobError", "no")
            elif move == "release":
                jobs.release(self.db, job, attempts=0)
            else:
                delay = 1000.0 if move == "park long" else 0.0
                jobs.park(self.db, job, delay, "why", attempts=0, deferred=True)

        @rule()
        def feed_them(self) -> None:
            feed.wake_due(self.db)

        @rule()
        def send_them(self) -> None:
            feed.fill(self.db, "summarize", 10, 600.0)
            feed.forgotten(self.db, "summarize", 0.0, queue_empty=True, limit=10)

        @precondition(lambda self: self.seen)
        @rule(data=st.data())
        def cancel(self, data: st.DataObject) -> None:
            jobs.cancel(self.db, data.draw(st.sampled_from(["batch", *self.seen])))

        @precondition(lambda self: self.seen)
        @rule(data=st.data())
        def retry(self, data: st.DataObject) -> None:
            jobs.retry(self.db, data.draw(st.sampled_from(["batch", *self.seen])))

        @precondition(lambda self: self.seen)
        @rule(data=st.data(), late_s=st.sampled_from([1.0, 2 * deadlines.GRACE_S]))
        def be_late(self, data: st.DataObject, late_s: float) -> None:
            name = data.draw(st.sampled_from(sorted(self.seen)))
            change(self.db, name, deadline_s=9.0, deadline_at=self.db.now() - late_s)

        @rule()
        def end_the_late(self) -> None:
            deadlines.end_overdue(self.db)

        @rule(worker_id=st.sampled_from(WORKERS))
        def die(self, worker_id: str) -> None:
            register(self.db, worker_id, lease_s=-1.0)
            workers.reap(self.db, max_crashes=2)
            register(self.db, worker_id)

        @invariant()
        def promises_hold(self) -> None:
            with self.db.read() as connection:
                rows = connection.execute(sa.select(jobs_table)).all()
                outputs = dict(
                    connection.execute(
                        sa.select(results_table.c.job_id, results_table.c.output)
                    ).all()
                )
            for row in rows:
                before, after = self.seen[row.job_id], JobState(row.state)
                assert after == before or after in MOVES[before], (before, after)
                self.seen[row.job_id] = after
                assert (row.finished_at is not None) == (not is_open(after))
                assert after is not JobState.RUNNING or row.worker_id in WORKERS
            assert outputs == self.ended
            completed = {row.job_id for row in rows if row.state == "completed"}
            assert completed == set(outputs)
            if rows:
                self.counts_add_up(len(rows))

        def counts_add_up(self, total: int) -> None:
            found = batches.status(self.db, "batch")
            assert found is not None
            parts = (found.queued, found.running, found.waiting)
            ends = (found.completed, found.failed, found.cancelled)
            assert sum(parts) + sum(ends) == found.total == total
            assert sum(found.reasons.values()) == found.waiting

        def teardown(self) -> None:
            self.db.close()
            shutil.rmtree(self.directory)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def is_open(state: JobState) -> bool:
    return state in (JobState.QUEUED, JobState.RUNNING, JobState.WAITING)
