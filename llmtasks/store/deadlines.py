"""Deadlines: a job that was not done in the time it was given fails.

A worker ends what it runs by itself; this is for jobs that nobody runs, and for those whose worker does not
get to it.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Select
from sqlalchemy.engine import Connection, Row

from llmtasks.errors import DeadlineExceeded
from llmtasks.jobs import JobState
from llmtasks.store import outbox
from llmtasks.store.engine import Database, epoch
from llmtasks.store.jobs import to_be_told
from llmtasks.store.names import clean
from llmtasks.store.tables import TIMED, UNCLAIMED, jobs

#: Seconds that the worker of a running job has to end it: to give up its call, or to commit a result that
#: arrived in time.
GRACE_S = 30.0

_PASSED = sa.and_(TIMED, jobs.c.deadline_at <= epoch())
_OVERDUE = sa.and_(_PASSED, sa.or_(UNCLAIMED, jobs.c.deadline_at <= epoch() - GRACE_S))
# Without an order PostgreSQL hopes to meet one soon, and reads all jobs for it.
_LOOK = sa.select(jobs.c.seq).where(_OVERDUE).order_by(jobs.c.deadline_at).limit(1)
_ROWS = sa.select(
    jobs.c.seq, jobs.c.job_id, jobs.c.state, jobs.c.reason, jobs.c.deadline_s
).with_for_update(skip_locked=True)


def end_overdue(db: Database, limit: int = 1_000, *, to_sink: bool = False) -> int:
    """Fail up to `limit` jobs whose deadline has passed, the longest overdue first; how many.

    Callers of direct jobs are told by the feeder, and with `to_sink` the user's sink is.
    """
    rows = _ROWS.where(_OVERDUE).order_by(jobs.c.deadline_at)
    with db.read() as connection:  # most of the time there is none, and no writer is stopped
        if connection.execute(_LOOK).first() is None:
            return 0
    with db.write() as connection:
        return _end(connection, rows.limit(limit), to_be_told(), to_sink=to_sink)


def end_if_overdue(db: Database, job_id: str, worker_id: str, *, to_sink: bool = False) -> bool:
    """Fail a job that nobody runs, if its deadline has passed; whether it was.

    Its message is in the hands of this worker, which tells its caller.
    """
    rows = _ROWS.where(jobs.c.job_id == job_id, UNCLAIMED, _PASSED)
    with db.write() as connection:
        ended = _end(connection, rows, jobs.c.sent_at, to_sink=to_sink)
        if ended:
            held = sa.update(jobs).where(jobs.c.job_id == job_id)
            connection.execute(held.values(worker_id=worker_id))
    return ended > 0


def _end(
    connection: Connection,
    rows: Select[tuple[int, str, str, str | None, float]],
    sent_at: ColumnElement[float | None],
    *,
    to_sink: bool,
) -> int:
    found = connection.execute(rows).all()
    if not found:
        return 0
    connection.execute(
        sa.update(jobs)
        .where(jobs.c.seq == sa.bindparam("the_row"))
        .values(
            state=JobState.FAILED.value,
            fence=jobs.c.fence + 1,  # whoever still runs it has lost it, and says what the row says
            finished_at=epoch(),
            not_before=None,
            reason=None,
            error_type=DeadlineExceeded.__name__,
            error_message=sa.bindparam("the_message"),
            sent_at=sent_at,
        ),
        [{"the_row": row.seq, "the_message": _message(row)} for row in found],
    )
    if to_sink:
        outbox.put(connection, [row.job_id for row in found])
    return len(found)


def _message(row: Row[tuple[int, str, str, str | None, float]]) -> str:
    match row.state:
        case JobState.WAITING:
            doing = f"it was waiting: {row.reason}"
        case JobState.RUNNING:
            doing = "its worker was busy with it"
        case _:
            doing = "it was queued"
    return clean(str(DeadlineExceeded.after(row.deadline_s, doing)))
