"""How many jobs are open, and how long the oldest has been: what people watch, read from indexes.

Only what has not ended is read: a partial index each for what is to be sent (all of it is in the index),
what was sent, what runs and what waits. Ended jobs, which are most of them, cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement
from sqlalchemy.engine import Connection

from llmtasks.store.engine import Database, epoch
from llmtasks.store.tables import FEEDABLE, RUNNING, SENT, WAITING, jobs, outbox

#: Of how many sent jobs, those whose messages wait longest, the oldest is looked for: they are sent in
#: about the order of their arrival, which no index of theirs holds.
OLDEST_OF = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenJobs:
    """The open jobs of one task type. `oldest_s`: since the oldest queued one was submitted, if one is."""

    task_type: str
    queued: int = 0
    running: int = 0
    waiting: int = 0
    oldest_s: float | None = None


def open_jobs(db: Database) -> list[OpenJobs]:
    """The open jobs of each task type that has any, by its name."""
    with db.read() as connection:
        unsent = _unsent(connection)
        sent = _counts(connection, SENT)
        running = _counts(connection, RUNNING)
        waiting = _counts(connection, WAITING)
        oldest = {name: at for name, (_, at) in unsent.items()}
        for name in sent:
            oldest[name] = min(filter(None, (oldest.get(name), _oldest_sent(connection, name))))
        now: float = connection.execute(sa.select(epoch())).scalar_one()
    return [
        OpenJobs(
            task_type=name,
            queued=unsent.get(name, (0, 0.0))[0] + sent.get(name, 0),
            running=running.get(name, 0),
            waiting=waiting.get(name, 0),
            oldest_s=max(0.0, now - oldest[name]) if name in oldest else None,
        )
        for name in sorted(unsent.keys() | sent.keys() | running.keys() | waiting.keys())
    ]


def undelivered(db: Database) -> int:
    """Ended jobs that are still to be delivered to the user's sink."""
    with db.read() as connection:
        counted = sa.select(sa.func.count()).select_from(outbox)
        return connection.execute(counted).scalar_one()


def _unsent(connection: Connection) -> dict[str, tuple[int, float]]:
    """What is to be sent: how many, and when the oldest was submitted."""
    rows = connection.execute(
        sa.select(jobs.c.task_type, sa.func.count(), sa.func.min(jobs.c.created_at))
        .where(FEEDABLE)
        .group_by(jobs.c.task_type)
    )
    return {name: (count, oldest) for name, count, oldest in rows}


def _counts(connection: Connection, which: ColumnElement[bool]) -> dict[str, int]:
    query: sa.Select[Any] = (
        sa.select(jobs.c.task_type, sa.func.count()).where(which).group_by(jobs.c.task_type)
    )
    return dict(connection.execute(query).all())


def _oldest_sent(connection: Connection, task_type: str) -> float | None:
    first = (
        sa.select(jobs.c.created_at)
        .where(SENT, jobs.c.task_type == task_type)
        .order_by(jobs.c.sent_at)
        .limit(OLDEST_OF)
        .subquery()
    )
    found: float | None = connection.execute(sa.select(sa.func.min(first.c.created_at))).scalar()
    return found
