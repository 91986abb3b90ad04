"""What is older than `[retention]` keeps it is removed, by one worker at a time and a little at a time."""

from __future__ import annotations

import threading
import time

from llmtasks import logs
from llmtasks.errors import LLMTasksError
from llmtasks.retry import describe
from llmtasks.settings import Retention
from llmtasks.store import retention
from llmtasks.store.engine import Database
from llmtasks.store.retention import Removed

_log = logs.get("housekeeping")

#: Seconds between two turns, of all workers together; the longest that one lasts.
INTERVAL_S = 600.0
#: Seconds between two looks at whose turn it is.
LOOK_S = 60.0
#: Of its time, so much is left to others: SQLite has one writer.
REST = 4.0
#: Seconds of the shortest pause between two transactions.
PAUSE_S = 0.02


class Housekeeping:
    """Periodic removal, of one process."""

    def __init__(self, db: Database, keep: Retention) -> None:
        self._db = db
        self._keep = keep
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._until_stopped, name="llmtasks-housekeeping", daemon=True
        )

    def start(self) -> None:
        """Start the thread; it begins with a pause."""
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction under way, if it does not hang."""
        self._stopping.set()
        self._thread.join(timeout=10.0)

    def _until_stopped(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                if retention.turn(self._db, INTERVAL_S):
                    self.tidy()
            except LLMTasksError as error:
                logs.warning(_log, "tidying-failed", why=describe(error))
            except Exception as error:  # noqa: BLE001  # a defect must not end the thread
                logs.error(_log, "tidying-broken", why=type(error).__name__, at=logs.place(error))

    def tidy(self) -> Removed:
        """Remove what is due, for as long as a turn lasts; the next one goes on."""
        removed = Removed()
        ends = time.monotonic() + INTERVAL_S
        began = time.monotonic()
        for some in retention.tidy(self._db, self._keep):
            removed += some
            took = time.monotonic() - began
            if self._stopping.wait(max(PAUSE_S, REST * took)) or time.monotonic() > ends:
                break
            began = time.monotonic()
        if removed:
            logs.info(_log, "removed", **removed.counts())
        return removed
