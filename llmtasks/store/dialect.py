"""The few things that SQLAlchemy says differently for the two databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import ColumnElement, Select, Table, select
from sqlalchemy.engine import Connection

from llmtasks.store.tables import jobs

if TYPE_CHECKING:
    # Loaded when used: start-up time of programs that only submit.
    from sqlalchemy.dialects import postgresql, sqlite

Insert: TypeAlias = "sqlite.Insert | postgresql.Insert"


def insert(connection: Connection, table: Table) -> Insert:
    """An INSERT that has ON CONFLICT."""
    return insert_for(connection.dialect.name, table)


def insert_for(name: str, table: Table) -> Insert:
    """The same by the name of the dialect, for statements that are made once and kept."""
    if name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def locked(rows: Select[Any], *, skip: bool) -> ColumnElement[bool]:
    """The condition "is one of these jobs", after locking them in the order of the query.

    `rows` selects `jobs.seq`. With `skip`, rows that somebody else holds are left out instead of
    waited for. A CTE, because PostgreSQL may evaluate a subquery more than once, and then locks
    more than LIMIT. Count what such a statement returns: SQLite's driver has no `rowcount` for it.
    """
    picked = rows.with_for_update(skip_locked=skip).cte("picked")
    return jobs.c.seq.in_(select(picked.c.seq))
