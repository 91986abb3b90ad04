"""The schema's version, and the way to the newest. Alembic is loaded only to migrate."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from llmtasks.errors import ConfigurationError
from llmtasks.store.engine import Database

#: The newest revision, which this version of the code works on. Revisions are numbered: 0001, 0002,
#: …
HEAD = "0006"

#: Held on PostgreSQL while migrating, so that of several starters one migrates. Any number of ours.
_LOCK = 5_061_807_294


def current(url: str) -> str | None:
    """The revision of the database at `url`; None when it has no schema."""
    database = Database(url, pool_size=1)
    try:
        return revision(database)
    finally:
        database.close()


def revision(database: Database) -> str | None:
    """The revision of an open database; None when it has no schema."""
    with database.read() as connection:
        return _revision(connection)


def upgrade(url: str) -> None:
    """Bring the database at `url` to HEAD, in one transaction. Several may do so at once.

    Raises:
        ConfigurationError: its schema is newer than this code.
        StoreUnavailable: it does not answer.
    """
    database = Database(url, pool_size=1)
    try:
        with database.write() as connection:
            if not database.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            found = _revision(connection)
            if found is not None and found > HEAD:
                raise ConfigurationError(
                    f"the database's schema {found} is newer than {HEAD}; install a newer llmtasks"
                )
            if found != HEAD:
                _migrate(connection)
    finally:
        database.close()


def script_location() -> Path:
    """The directory of the migrations: inside an installed package, beside it in a checkout.

    Raises:
        ConfigurationError: this installation has none.
    """
    import llmtasks

    for place in llmtasks.__path__:
        for directory in (Path(place) / "_migrations", Path(place).parent / "migrations"):
            if (directory / "versions" / "0001_initial.py").is_file():
                return directory
    raise ConfigurationError("the migrations are not installed; install llmtasks again")


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # ConfigParser reads % as its own.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(
        sa.text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found
