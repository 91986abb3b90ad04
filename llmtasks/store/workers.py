"""Worker processes: their leases, and what becomes of the jobs of a dead one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from llmtasks.errors import WorkerLost
from llmtasks.jobs import JobState
from llmtasks.store import dialect, outbox
from llmtasks.store.engine import Database, epoch
from llmtasks.store.jobs import end_cancelled
from llmtasks.store.tables import FINISHED, RUNNING, jobs, workers

#: In how many leases before its death a worker's Celery results are suspected not to have been
#: sent.
LAST_LEASES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker process whose lease has not run out."""

    worker_id: str
    hostname: str
    pid: int
    queues: Sequence[str]
    concurrency: int
    metrics_url: str | None
    started_at: float
    lease_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What was done for dead workers; the feeder sends what follows from it.

    `workers` leases had run out. `requeued` jobs are to be run again, `failed` ones had workers that died
    too often; the callers of `untold` jobs, which ended in the last moments of their worker, may not have
    heard of it.
    """

    requeued: int
    failed: int
    untold: int
    workers: int = 0


def register(
    db: Database,
    worker_id: str,
    hostname: str,
    pid: int,
    queues: Sequence[str],
    concurrency: int,
    metrics_url: str | None,
    lease_s: float,
) -> None:
    """Say that a worker process is there; it keeps its jobs while it beats within `lease_s`."""
    values = {
        "hostname": hostname,
        "pid": pid,
        "queues": list(queues),
        "concurrency": concurrency,
        "metrics_url": metrics_url,
        "started_at": epoch(),
        "lease_s": lease_s,
        "lease_until": epoch() + lease_s,
    }
    with db.write() as connection:
        connection.execute(
            dialect.insert(connection, workers)
            .values(worker_id=worker_id, **values)
            .on_conflict_do_update(index_elements=[workers.c.worker_id], set_=values)
        )


def heartbeat(db: Database, worker_id: str, lease_s: float) -> bool:
    """Renew the lease. False: it was lost, and the jobs with it."""
    with db.write() as connection:
        renewed = connection.execute(
            sa.update(workers)
            .where(workers.c.worker_id == worker_id)
            .values(lease_s=lease_s, lease_until=epoch() + lease_s)
        )
    return renewed.rowcount == 1


def remove(db: Database, worker_id: str) -> None:
    """Say that a worker process is gone. Jobs it still holds are given to others by `reap`."""
    with db.write() as connection:
        connection.execute(sa.delete(workers).where(workers.c.worker_id == worker_id))


def live(db: Database) -> list[WorkerRow]:
    """The workers whose lease has not run out, the oldest first."""
    columns = workers.c
    with db.read() as connection:
        rows = connection.execute(
            sa.select(
                columns.worker_id,
                columns.hostname,
                columns.pid,
                columns.queues,
                columns.concurrency,
                columns.metrics_url,
                columns.started_at,
                columns.lease_until,
            )
            .where(columns.lease_until >= epoch())
            .order_by(columns.started_at, columns.worker_id)
        ).all()
    return [WorkerRow(**row._asdict()) for row in rows]


def reap(db: Database, max_crashes: int, *, to_sink: bool = False) -> Reaped:
    """Take their jobs from workers whose lease has run out, and from those that have no row at all.

    A job goes back to the queue; after `max_crashes` such losses it fails with WorkerLost, and with
    `to_sink` is to be delivered to the user's sink.

    What somebody holds is left for the next call: a process that was stopped within a transaction holds its
    rows for as long as that lasts, and whoever waits for them here does not renew a lease meanwhile.
    """
    requeued = failed = untold = lost_leases = 0
    for worker_id in _suspects(db):
        with db.write() as connection:
            lease = _end_lease(connection, worker_id)
            if lease is None and _is_there(connection, worker_id):
                continue  # it has beaten since, or somebody holds its row
            if lease is not None:
                lost_leases += 1
                since = lease.lease_until - LAST_LEASES * lease.lease_s
                untold += _untell(connection, worker_id, since)
            taken = _take_jobs(connection, worker_id, max_crashes)
            lost = sorted(job_id for job_id, state in taken.items() if state is JobState.FAILED)
            if to_sink:
                outbox.put(connection, lost)
            end_cancelled(connection, sorted(taken.keys() - set(lost)))
            requeued += len(taken) - len(lost)
            failed += len(lost)
    return Reaped(requeued=requeued, failed=failed, untold=untold, workers=lost_leases)


def _suspects(db: Database) -> list[str]:
    """Workers whose lease has run out, and ids that run jobs without being a worker."""
    late = sa.select(workers.c.worker_id).where(workers.c.lease_until < epoch())
    orphans = sa.select(jobs.c.worker_id).where(
        RUNNING, jobs.c.worker_id.not_in(sa.select(workers.c.worker_id))
    )
    with db.read() as connection:
        return sorted(connection.execute(late.union(orphans)).scalars())


def _end_lease(connection: Connection, worker_id: str) -> Row[float, float] | None:
    """Remove a lease that has run out; how long it was, and until when. None: not run out, or held."""
    late = (
        sa.select(workers.c.worker_id)
        .where(workers.c.worker_id == worker_id, workers.c.lease_until < epoch())
        .with_for_update(skip_locked=True)
        .cte("late")
    )
    return connection.execute(
        sa.delete(workers)
        .where(workers.c.worker_id.in_(sa.select(late.c.worker_id)))
        .returning(workers.c.lease_s, workers.c.lease_until)
    ).one_or_none()


def _is_there(connection: Connection, worker_id: str) -> bool:
    found = connection.execute(
        sa.select(workers.c.worker_id).where(workers.c.worker_id == worker_id)
    )
    return found.first() is not None


def _untell(connection: Connection, worker_id: str, since: float) -> int:
    """Have the callers of direct jobs told again that their job has ended; how many.

    Waits for rows that somebody holds: with the lease goes what is known of them.
    """
    return connection.execute(
        sa.update(jobs)
        .where(
            jobs.c.worker_id == worker_id,
            jobs.c.finished_at >= since,
            FINISHED,
            jobs.c.direct.is_(True),
        )
        .values(sent_at=None)
    ).rowcount


def _take_jobs(connection: Connection, worker_id: str, max_crashes: int) -> dict[str, JobState]:
    """Move a dead worker's running jobs; the fence moves too, so it cannot come back to them."""
    held = sa.select(jobs.c.seq).where(jobs.c.worker_id == worker_id, RUNNING).order_by(jobs.c.seq)
    hopeless = jobs.c.crashes + 1 >= max_crashes
    rows = connection.execute(
        sa.update(jobs)
        .where(dialect.locked(held, skip=True), RUNNING, jobs.c.worker_id == worker_id)
        .values(
            state=sa.case((hopeless, JobState.FAILED.value), else_=JobState.QUEUED.value),
            crashes=jobs.c.crashes + 1,
            fence=jobs.c.fence + 1,
            worker_id=sa.case((hopeless, jobs.c.worker_id)),
            sent_at=None,
            finished_at=sa.case((hopeless, epoch())),
            error_type=sa.case((hopeless, WorkerLost.__name__)),
            error_message=sa.case(
                (hopeless, f"its worker died {max_crashes} times while running it")
            ),
        )
        .returning(jobs.c.job_id, jobs.c.state)
    )
    return {row.job_id: JobState(row.state) for row in rows}
