"""What a database says of itself, asked without changing it, and within a time."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from llmtasks.addresses import public
from llmtasks.errors import LLMTasksError
from llmtasks.jobs import JobState
from llmtasks.settings import Settings
from llmtasks.store import outbox, schema, workers
from llmtasks.store.engine import SQLITE_FILE, Database
from llmtasks.store.outbox import Waiting
from llmtasks.store.tables import OPEN, jobs
from llmtasks.store.workers import WorkerRow


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseState:
    """A database's answer; `failure` says why there is none.

    `exists` is False for a SQLite file that nobody has written yet, `revision` None without a schema.
    `workers` are those whose lease runs; none where the schema is not ours.
    """

    address: str
    exists: bool = True
    failure: str | None = None
    software: str = ""
    revision: str | None = None
    head: str = schema.HEAD
    workers: tuple[WorkerRow, ...] = ()


def address(settings: Settings) -> str:
    """Where the database of these settings is, without secrets."""
    if settings.database.url is None:
        return str(settings.data_dir / SQLITE_FILE)
    return public(settings.database.url)


def probe(settings: Settings, timeout_s: float) -> DatabaseState:
    """Ask the database of these settings. Creates and migrates nothing."""
    where = address(settings)
    try:
        database = _open(settings, timeout_s)
        if database is None:
            return DatabaseState(address=where, exists=False)
        try:
            return _state(database, where)
        finally:
            database.close()
    except LLMTasksError as error:
        return DatabaseState(address=where, failure=str(error))


def backlog(settings: Settings, timeout_s: float) -> dict[str, dict[JobState, int]]:
    """How many jobs of each task type have not ended, by state. All of them are counted.

    Raises:
        LLMTasksError: The database does not answer.
    """
    counts: dict[str, dict[JobState, int]] = {}
    with _ready(settings, timeout_s) as database:
        if database is None:
            return counts
        with database.read() as connection:
            rows = connection.execute(
                sa.select(jobs.c.task_type, jobs.c.state, sa.func.count())
                .where(OPEN)
                .group_by(jobs.c.task_type, jobs.c.state)
                .order_by(jobs.c.task_type, jobs.c.state)
            )
            for task_type, state, count in rows:
                counts.setdefault(task_type, {})[JobState(state)] = count
    return counts


def undelivered(settings: Settings, timeout_s: float) -> Waiting:
    """What `[results] sink` has still to be given.

    Raises:
        LLMTasksError: The database does not answer.
    """
    with _ready(settings, timeout_s) as database:
        if database is None:
            return Waiting(count=0, oldest_s=None, failing=0)
        return outbox.waiting(database)


@contextlib.contextmanager
def _ready(settings: Settings, timeout_s: float) -> Iterator[Database | None]:
    """The database, if it is there and has the schema of this version."""
    database = _open(settings, timeout_s)
    if database is None:
        yield None
        return
    try:
        yield database if schema.revision(database) == schema.HEAD else None
    finally:
        database.close()


def _open(settings: Settings, timeout_s: float) -> Database | None:
    """The database; None when it is a SQLite file that does not exist: to open it would create it."""
    url = settings.database.url
    if url is None:
        path = settings.data_dir / SQLITE_FILE
        url = URL.create("sqlite", database=str(path)).render_as_string()
    database = Database(url, pool_size=1)
    if database.is_sqlite:
        return database if Path(database.url.database or "").exists() else None
    hurried = database.url.update_query_dict({"connect_timeout": str(max(1, round(timeout_s)))})
    return Database(hurried.render_as_string(hide_password=False), pool_size=1)


def _state(database: Database, where: str) -> DatabaseState:
    revision = schema.revision(database)
    return DatabaseState(
        address=where,
        software=_software(database),
        revision=revision,
        workers=tuple(workers.live(database)) if revision == schema.HEAD else (),
    )


def _software(database: Database) -> str:
    if database.is_sqlite:
        return f"SQLite {sqlite3.sqlite_version}"
    with database.read() as connection:
        version: str = connection.execute(sa.text("SHOW server_version")).scalar_one()
    return f"PostgreSQL {version.split(maxsplit=1)[0]}"
