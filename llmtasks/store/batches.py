"""Batches: many jobs under one id, and how far they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import ColumnElement
from sqlalchemy.engine import Connection

from llmtasks.errors import BatchExists
from llmtasks.jobs import JobState, NewJob
from llmtasks.store import dialect, jobs
from llmtasks.store.engine import Database, epoch
from llmtasks.store.names import is_storable
from llmtasks.store.tables import CRASHED, OPEN, WAITING, provider_calls, results
from llmtasks.store.tables import batches as batches_table
from llmtasks.store.tables import jobs as jobs_table

#: Open jobs that are looked at for the types of a mixed group.
_LOOKED_AT = 1_000

BatchState = Literal["running", "completed", "partial", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """How far a batch is, at one moment. `total` is the sum of the six states.

    `cached` counts the completed jobs that paid for no call. Tokens and `cost_usd` are what was
    really paid, for jobs that failed or ran twice as well; the cost is None when that of one call
    is unknown. `reasons` counts the waiting jobs by what they wait for. `taken_over` is how often a
    job was taken from a worker that had died, since it was last retried: each time a call may have
    been paid that no row knows.
    """

    batch_id: str
    state: BatchState
    total: int
    queued: int
    running: int
    waiting: int
    completed: int
    failed: int
    cancelled: int
    cached: int
    taken_over: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    reasons: Mapping[str, int]


def create(
    db: Database,
    batch_id: str,
    tenant: str,
    task_type: str | None,
    options: Mapping[str, Any],
    new: Iterable[NewJob],
    *,
    only_new: bool = False,
) -> int:
    """Write a batch and all of its jobs, or nothing; how many jobs it has then.

    No jobs make no batch. The same jobs may be written again when the answer to the first time
    was lost; others are added to the batch, unless it is to be `only_new`.

    Raises:
        InvalidOption: a job's id, name or priority cannot be.
        BatchExists: a batch of another tenant has this id, or, with `only_new`, any other batch.
    """
    rows = list(new)
    for job in rows:
        jobs.check(job)
    if not rows:
        return 0
    with db.write() as connection:
        batch = dialect.insert(connection, batches_table).values(
            batch_id=batch_id,
            tenant=tenant,
            task_type=task_type,
            options=dict(options),
            created_at=epoch(),
        )
        made = connection.execute(
            # Changes nothing, and holds one that is there: nobody removes it while it gets jobs.
            batch.on_conflict_do_update(
                index_elements=[batches_table.c.batch_id],
                set_={"created_at": batch.excluded.created_at},
                where=sa.false(),
            ).returning(batches_table.c.batch_id)
        ).first()
        if made is None:
            _check_known(connection, batch_id, tenant, rows[0].job_id, only_new=only_new)
        jobs.add_rows(connection, rows, sent=False)
        return connection.execute(
            sa.select(sa.func.count()).where(jobs_table.c.batch_id == batch_id)
        ).scalar_one()


def _check_known(
    connection: Connection, batch_id: str, tenant: str, job_id: str, *, only_new: bool
) -> None:
    """Refuse jobs for a batch that is there: another tenant's, or none of whose jobs is this one."""
    whose = sa.select(batches_table.c.tenant).where(batches_table.c.batch_id == batch_id)
    again = sa.select(jobs_table.c.seq).where(
        jobs_table.c.job_id == job_id, jobs_table.c.batch_id == batch_id
    )
    others = connection.execute(whose).scalar() != tenant
    if others or (only_new and connection.execute(again).first() is None):
        raise BatchExists(f"there is a batch {batch_id!r} already")


def status(db: Database, batch_id: str) -> BatchStatus | None:
    """How far a batch is, or a single job: a batch of one. None when there is neither."""
    if not is_storable(batch_id):
        return None
    with db.read() as connection:
        known = connection.execute(
            sa.select(batches_table.c.batch_id).where(batches_table.c.batch_id == batch_id)
        ).first()
        key = "batch_id" if known else "job_id"
        counts = _count(connection, jobs_table.c.state, jobs_table.c[key] == batch_id)
        if not known and not counts:
            return None
        reasons = _count(
            connection, jobs_table.c.reason, sa.and_(jobs_table.c[key] == batch_id, WAITING)
        )
        cached = connection.execute(
            sa.select(sa.func.count())
            .select_from(results)
            .where(results.c[key] == batch_id, results.c.cached.is_(True))
        ).scalar_one()
        taken_over = connection.execute(
            sa.select(sa.func.coalesce(sa.func.sum(jobs_table.c.crashes), 0)).where(
                jobs_table.c[key] == batch_id, CRASHED
            )
        ).scalar_one()
        paid = connection.execute(
            sa.select(
                sa.func.coalesce(sa.func.sum(provider_calls.c.input_tokens), 0).label("input"),
                sa.func.coalesce(sa.func.sum(provider_calls.c.output_tokens), 0).label("output"),
                sa.func.coalesce(sa.func.sum(provider_calls.c.cost_usd), 0.0).label("cost"),
                (sa.func.count() - sa.func.count(provider_calls.c.cost_usd)).label("unknown"),
            ).where(provider_calls.c[key] == batch_id)
        ).one()
    by_state = {state: counts.get(state.value, 0) for state in JobState}
    return BatchStatus(
        batch_id=batch_id,
        state=state_of(by_state),
        total=sum(by_state.values()),
        queued=by_state[JobState.QUEUED],
        running=by_state[JobState.RUNNING],
        waiting=by_state[JobState.WAITING],
        completed=by_state[JobState.COMPLETED],
        failed=by_state[JobState.FAILED],
        cancelled=by_state[JobState.CANCELLED],
        cached=cached,
        taken_over=int(taken_over),
        input_tokens=int(paid.input),
        output_tokens=int(paid.output),
        cost_usd=None if paid.unknown else float(paid.cost),
        reasons={reason or "": count for reason, count in reasons.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When a batch was submitted and when its last job ended, None while one has not.

    `now` is the same moment on the same clock, the database's; seconds since the epoch.
    """

    submitted_at: float
    ended_at: float | None
    now: float


def tenant_of(db: Database, target: str) -> str | None:
    """Whose a batch is, or a job; None when there is neither."""
    if not is_storable(target):
        return None
    with db.read() as connection:
        for table, key in ((batches_table, "batch_id"), (jobs_table, "job_id")):
            query = sa.select(table.c.tenant).where(table.c[key] == target)
            if (found := connection.execute(query).scalar()) is not None:
                return str(found)
    return None


def times(db: Database, batch_id: str) -> Times | None:
    """When a batch, or a single job, was submitted and ended. None when there is neither.

    Reads every row of a batch that has ended: for its last word, not for each look.
    """
    if not is_storable(batch_id):
        return None
    with db.read() as connection:
        known = connection.execute(
            sa.select(batches_table.c.created_at).where(batches_table.c.batch_id == batch_id)
        ).scalar()
        which = jobs_table.c["job_id" if known is None else "batch_id"] == batch_id
        submitted_at = known
        if submitted_at is None:
            submitted_at = connection.execute(
                sa.select(jobs_table.c.created_at).where(which)
            ).scalar()
        if submitted_at is None:
            return None
        is_open = connection.execute(
            sa.select(jobs_table.c.job_id).where(which, OPEN).order_by(jobs_table.c.state).limit(1)
        ).first()
        ended_at = None
        if is_open is None:
            ended_at = connection.execute(
                sa.select(sa.func.max(jobs_table.c.finished_at)).where(which)
            ).scalar()
        now = connection.execute(sa.select(epoch())).scalar_one()
    return Times(submitted_at=submitted_at, ended_at=ended_at, now=now)


def next_due_s(db: Database, batch_id: str) -> float | None:
    """Seconds until the time of the first waiting job of a batch (or of a job) comes.

    Negative when it has come already; None when none waits.
    """
    if not is_storable(batch_id):
        return None
    first = sa.select(sa.func.min(jobs_table.c.not_before) - epoch())
    with db.read() as connection:
        found: float | None = connection.execute(
            first.where(jobs_table.c.batch_id == batch_id, WAITING)
        ).scalar()
        if found is None:
            found = connection.execute(
                first.where(jobs_table.c.job_id == batch_id, WAITING)
            ).scalar()
    return found


def newest(db: Database) -> str | None:
    """The batch (or Celery group) that was submitted last; None when there is none."""
    with db.read() as connection:
        return connection.execute(
            sa.select(batches_table.c.batch_id)
            .order_by(batches_table.c.created_at.desc(), batches_table.c.batch_id)
            .limit(1)
        ).scalar()


def open_task_types(db: Database, batch_id: str) -> list[str]:
    """The task types of the jobs of a batch (or of a job) that have not ended.

    Of a mixed Celery group only the first thousand open jobs are looked at.
    """
    if not is_storable(batch_id):
        return []
    with db.read() as connection:
        known = connection.execute(
            sa.select(batches_table.c.task_type).where(batches_table.c.batch_id == batch_id)
        ).first()
        which = jobs_table.c["batch_id" if known else "job_id"] == batch_id
        one_type = known is not None and known.task_type is not None
        looked_at = (
            sa.select(jobs_table.c.task_type)
            .where(which, OPEN)
            # Without an order PostgreSQL hopes to meet one soon, and reads all jobs for it.
            .order_by(jobs_table.c.state)
            .limit(1 if one_type else _LOOKED_AT)
            .subquery()
        )
        return sorted(connection.execute(sa.select(looked_at.c.task_type).distinct()).scalars())


def state_of(counts: Mapping[JobState, int]) -> BatchState:
    """The state of a batch, from how many of its jobs are in each."""
    total = sum(counts.values())
    completed = counts[JobState.COMPLETED]
    cancelled = counts[JobState.CANCELLED]
    if completed + cancelled + counts[JobState.FAILED] < total:
        return "running"
    if completed == total:
        return "completed"
    if completed:
        return "partial"
    return "cancelled" if cancelled == total else "failed"


def _count(
    connection: Connection, column: ColumnElement[Any], which: ColumnElement[bool]
) -> dict[Any, int]:
    rows = connection.execute(sa.select(column, sa.func.count()).where(which).group_by(column))
    return {value: count for value, count in rows}  # noqa: C416 - rows are no pairs to the type checker
