"""Feeding: which rows are handed to the broker next, and which it has forgotten.

`plan` decides, the rest reads and marks. Two feeders may run at once: `turn` lets one go per
interval, and a row that one has picked is skipped by the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Select
from sqlalchemy.engine import Row

from llmtasks.errors import DeadlineExceeded
from llmtasks.jobs import MAX_PRIORITY, JobState
from llmtasks.store import dialect
from llmtasks.store.engine import Database, epoch
from llmtasks.store.jobs import IN_TIME
from llmtasks.store.tables import (
    FEEDABLE,
    FINISHED,
    RUNNING,
    SENT,
    UNTOLD,
    WAITING,
    jobs,
    queues,
    workers,
)

#: Seconds a message may lie in a queue that is not empty before its row is suspected to be
#: forgotten.
OVERTAKEN_AFTER_S = 60.0
#: Of how many jobs that ended last the order of sending is looked at.
OVERTAKERS = 1_000
#: Ended by work, which a deadline is not: most of those it ends were never claimed.
_WORKED_ON = sa.and_(FINISHED, jobs.c.error_type.is_distinct_from(DeadlineExceeded.__name__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Rows to send of one tenant and priority. `oldest_at`: when the first arrived."""

    priority: int
    tenant: str
    oldest_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sendable:
    """A job to publish: what its message says, and its place in a Celery canvas."""

    job_id: str
    document_id: str
    task_type: str
    options: Mapping[str, Any]
    tenant: str
    priority: int
    fresh: bool
    stream: bool
    direct: bool
    batch_id: str | None
    canvas: Mapping[str, Any] | None
    deadline_s: float | None


#: What a Sendable is made of.
SENDABLE_COLUMNS = (
    jobs.c.job_id,
    jobs.c.document_id,
    jobs.c.task_type,
    jobs.c.options,
    jobs.c.tenant,
    jobs.c.priority,
    jobs.c.fresh,
    jobs.c.stream,
    jobs.c.direct,
    jobs.c.batch_id,
    jobs.c.canvas,
    jobs.c.deadline_s,
)


def sendable(row: Row[*tuple[Any, ...]]) -> Sendable:
    """A row that holds SENDABLE_COLUMNS, perhaps among others."""
    return Sendable(**{column.name: getattr(row, column.name) for column in SENDABLE_COLUMNS})


def plan(lanes: Sequence[Lane], room: int, now: float, ageing_s: float) -> list[tuple[Lane, int]]:
    """How many rows to take from which lanes, to fill `room`.

    A lane gains one level of priority per `ageing_s` seconds its oldest row has waited. The highest
    level gets all of the room, its tenants equal shares; when that leaves room, because lanes were
    emptied, plan again without them. Who of the tenants gets the odd rows changes with `now`.
    """
    if room <= 0 or not lanes:
        return []

    def level(lane: Lane) -> int:
        aged = math.floor(max(0.0, now - lane.oldest_at) / ageing_s)
        return min(MAX_PRIORITY, lane.priority + aged)

    top = max(level(lane) for lane in lanes)
    first: dict[str, Lane] = {}
    for lane in sorted(lanes, key=lambda one: (one.oldest_at, -one.priority)):
        if level(lane) == top:
            first.setdefault(lane.tenant, lane)
    tenants = sorted(first)
    turn = int(now * 1000) % len(tenants)
    share, odd = divmod(room, len(tenants))
    counted = [
        (first[tenant], share + (place < odd))
        for place, tenant in enumerate(tenants[turn:] + tenants[:turn])
    ]
    return [(lane, count) for lane, count in counted if count]


def fill(db: Database, task_type: str, room: int, ageing_s: float) -> list[Sendable]:
    """Take up to `room` rows by the plan, and mark them sent."""
    taken: list[Sendable] = []
    if room <= 0:
        return taken
    now = db.now()
    ready = lanes(db, task_type)
    while shares := plan(ready, room - len(taken), now, ageing_s):
        for lane, count in shares:
            rows = take(db, task_type, lane, count)
            taken.extend(rows)
            if len(rows) < count:
                ready.remove(lane)
    return taken


def wake_due(db: Database, limit: int = 1000) -> int:
    """Queue the waiting jobs whose time has come, for the feeder to send; how many.

    Those whose deadline has passed stay what they are until that ends them: it says what they waited for.
    """
    due = sa.and_(WAITING, jobs.c.not_before <= epoch(), IN_TIME)
    rows = sa.select(jobs.c.seq).where(due).order_by(jobs.c.not_before).limit(limit)
    with db.write() as connection:
        woken = connection.execute(
            sa.update(jobs)
            .where(dialect.locked(rows, skip=True), WAITING)
            .values(state=JobState.QUEUED.value, sent_at=None, not_before=None, reason=None)
            .returning(jobs.c.seq)
        ).all()
    return len(woken)


def turn(db: Database, task_type: str, interval_s: float) -> bool:
    """Whether it is the caller's turn to feed this task type: one per `interval_s` seconds wins."""
    with db.write() as connection:
        statement = dialect.insert(connection, queues).values(task_type=task_type, fed_at=epoch())
        won = connection.execute(
            statement.on_conflict_do_update(
                index_elements=[queues.c.task_type],
                set_={"fed_at": statement.excluded.fed_at},
                where=queues.c.fed_at <= statement.excluded.fed_at - interval_s,
            ).returning(queues.c.task_type)
        ).first()
    return won is not None


def depth(db: Database, task_type: str) -> int:
    """Jobs of this type that were sent and not claimed yet: what the broker should hold."""
    with db.read() as connection:
        return connection.execute(
            sa.select(sa.func.count()).where(jobs.c.task_type == task_type, SENT)
        ).scalar_one()


_READY = f"task_type = :task_type AND {FEEDABLE}"
# A loose index scan: each step is one probe of ix_jobs_feed, however many rows a lane has.
_LANES = sa.text(
    f"""
    WITH RECURSIVE level(priority) AS (
        VALUES {", ".join(f"({priority})" for priority in range(MAX_PRIORITY + 1))}
    ), lane(priority, tenant) AS (
        SELECT level.priority,
            (SELECT min(tenant) FROM jobs WHERE {_READY} AND priority = level.priority)
        FROM level
        UNION ALL
        SELECT lane.priority,
            (SELECT min(tenant) FROM jobs
             WHERE {_READY} AND priority = lane.priority AND tenant > lane.tenant)
        FROM lane WHERE lane.tenant IS NOT NULL
    )
    SELECT lane.priority, lane.tenant,
        (SELECT min(created_at) FROM jobs
         WHERE {_READY} AND priority = lane.priority AND tenant = lane.tenant) AS oldest_at
    FROM lane WHERE lane.tenant IS NOT NULL
    """  # noqa: S608 - constants only
)


def lanes(db: Database, task_type: str) -> list[Lane]:
    """The lanes of this task type that have rows to send; highest priority first."""
    with db.read() as connection:
        rows = connection.execute(_LANES, {"task_type": task_type}).all()
    found = [
        Lane(priority=row.priority, tenant=row.tenant, oldest_at=row.oldest_at)
        for row in rows
        if row.oldest_at is not None
    ]
    return sorted(found, key=lambda lane: (-lane.priority, lane.tenant))


def take(db: Database, task_type: str, lane: Lane, limit: int) -> list[Sendable]:
    """Mark the next rows of a lane sent, and return them in arrival order.

    Not those whose deadline has passed: nobody would begin them.
    """
    rows = (
        sa.select(jobs.c.seq)
        .where(
            FEEDABLE,
            IN_TIME,
            jobs.c.task_type == task_type,
            jobs.c.priority == lane.priority,
            jobs.c.tenant == lane.tenant,
        )
        .order_by(jobs.c.created_at, jobs.c.seq)
        .limit(limit)
    )
    return _send(db, rows, FEEDABLE)


def untold(db: Database, task_type: str, limit: int) -> list[Sendable]:
    """Direct jobs that have ended and whose callers are to be told; marked as sent."""
    rows = (
        sa.select(jobs.c.seq)
        .where(UNTOLD, jobs.c.task_type == task_type)
        .order_by(jobs.c.seq)
        .limit(limit)
    )
    return [row for row in _send(db, rows, UNTOLD) if row.direct]


def finished_rate(db: Database, task_type: str, window_s: float) -> float:
    """Jobs of this type that ended by work per second, over the last `window_s` seconds."""
    with db.read() as connection:
        count = connection.execute(
            sa.select(sa.func.count()).where(
                jobs.c.task_type == task_type,
                jobs.c.finished_at > epoch() - window_s,
                _WORKED_ON,
            )
        ).scalar_one()
    return count / window_s


def forgotten(
    db: Database, task_type: str, resend_after_s: float, *, queue_empty: bool, limit: int
) -> list[Sendable]:
    """Rows that were sent and that the broker seems to hold no more, marked as sent anew.

    When its queue is empty: those sent longer than `resend_after_s` ago. Otherwise those that were
    overtaken: of the same kind (direct or fed, which are two lines in the broker), one sent
    `resend_after_s` later has been claimed already.
    """
    sent = sa.and_(SENT, jobs.c.task_type == task_type)
    if queue_empty:
        suspect: ColumnElement[bool] = jobs.c.sent_at < epoch() - resend_after_s
    else:
        overtakers = _newest_claimed(db, task_type)
        if not overtakers:
            return []
        suspect = sa.and_(
            jobs.c.sent_at < epoch() - OVERTAKEN_AFTER_S,
            sa.or_(
                *(
                    sa.and_(jobs.c.direct.is_(direct), jobs.c.sent_at < sent_at - resend_after_s)
                    for direct, sent_at in overtakers.items()
                )
            ),
        )
    rows = sa.select(jobs.c.seq).where(sent, suspect).order_by(jobs.c.sent_at).limit(limit)
    return _send(db, rows, SENT)


def _newest_claimed(db: Database, task_type: str) -> dict[bool, float]:
    """When the latest-sent of those claimed was sent; of direct and of fed jobs.

    Looked for among the running and those that ended last: less than all is only more careful.
    """
    columns = (jobs.c.direct, jobs.c.sent_at)
    here = jobs.c.task_type == task_type
    running = sa.select(*columns).where(
        here, RUNNING, jobs.c.worker_id.in_(sa.select(workers.c.worker_id))
    )
    ended = (
        sa.select(*columns)
        .where(here, _WORKED_ON, jobs.c.finished_at.is_not(None))
        .order_by(jobs.c.finished_at.desc())
        .limit(OVERTAKERS)
    )
    claimed = sa.union_all(running, sa.select(ended.subquery())).subquery()
    with db.read() as connection:
        rows = connection.execute(
            sa.select(claimed.c.direct, sa.func.max(claimed.c.sent_at).label("sent_at"))
            .where(claimed.c.sent_at.is_not(None))
            .group_by(claimed.c.direct)
        ).all()
    return {row.direct: row.sent_at for row in rows}


def _send(db: Database, rows: Select[Any], still: ColumnElement[bool]) -> list[Sendable]:
    with db.write() as connection:
        sent = connection.execute(
            sa.update(jobs)
            .where(dialect.locked(rows, skip=True), still)
            .values(sent_at=epoch())
            .returning(jobs.c.seq, jobs.c.created_at, *SENDABLE_COLUMNS)
        ).all()
    return [sendable(row) for row in sorted(sent, key=lambda row: (row.created_at, row.seq))]
