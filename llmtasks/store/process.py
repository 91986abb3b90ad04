"""This process' database. The engine, and SQLAlchemy with it, is loaded when it is opened: a program that
imports the Celery task starts in half the time.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from llmtasks.settings import current

if TYPE_CHECKING:
    from llmtasks.store.engine import Database


@functools.cache
def database() -> Database:
    """The database of the process' settings, opened at first use."""
    from llmtasks.store.engine import open_database

    return open_database(current())


def _close() -> None:
    if database.cache_info().currsize:
        database().close()


# A child must not inherit connections: it would share the parent's sockets, and hold SQLite's files
# open without their locks. Closed before the fork, they are opened anew on either side.
os.register_at_fork(before=_close, after_in_child=database.cache_clear)
