"""Shows what the database holds, from every worker process, seldom enough to disturb nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from llmtasks import logs, metrics, task_types
from llmtasks.errors import LLMTasksError
from llmtasks.retry import describe
from llmtasks.store import census
from llmtasks.store import workers as leases
from llmtasks.store.census import OpenJobs
from llmtasks.store.engine import Database
from llmtasks.store.workers import WorkerRow

_log = logs.get("census")

#: Seconds between two looks at whether the database answers, and who is alive; the shortest between two
#: counts of the jobs.
LOOK_S = 15.0
#: A count is made again after so many times what it took: by one process it may take 2 % of the time,
ALONE = 50.0
#: by all of them together 10 %, which is less for each than that from six on.
TOGETHER = 10.0

Values = Mapping[str, Mapping[tuple[str, ...], float]]


def rest_s(took: float, processes: int) -> float:
    """Seconds until jobs are counted again, after a count that took so long."""
    return max(LOOK_S, took * max(ALONE, TOGETHER * processes))


class Census:
    """Counts for the metrics of one process, on a thread of its own."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._counted: Values = {}
        self._due = 0.0
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._until_stopped, name="llmtasks-census", daemon=True
        )

    def start(self) -> None:
        """Start the thread; it begins with a look."""
        self._thread.start()

    def stop(self) -> None:
        """End after the query under way, if it does not hang."""
        self._stopping.set()
        self._thread.join(timeout=10.0)

    def _until_stopped(self) -> None:
        while True:
            self._try()
            if self._stopping.wait(LOOK_S):
                return

    def _try(self) -> None:
        """Look; without an answer nothing is shown. A trouble is logged when it is a new one."""
        trouble = None
        try:
            self.look()
        except LLMTasksError as error:
            trouble = describe(error)
        except Exception as error:  # noqa: BLE001  # a defect must not end the thread
            trouble = f"{type(error).__name__} at {logs.place(error)}"
        if trouble:
            self._forget()
        if trouble and trouble != self._trouble:
            logs.warning(_log, "census-failed", why=trouble)
        self._trouble = trouble

    def _forget(self) -> None:
        metrics.database_up.set(0)
        metrics.census.hide()
        self._due = 0.0

    def look(self) -> None:
        """Show who is alive, and what is open, counted anew when that is due."""
        live = leases.live(self._db)
        if time.monotonic() >= self._due:
            began = time.monotonic()
            self._counted = _of_jobs(census.open_jobs(self._db), census.undelivered(self._db))
            took = time.monotonic() - began
            self._counted = {**self._counted, "llm_census_duration_seconds": {(): took}}
            self._due = began + took + rest_s(took, len(live))
        metrics.census.show({**self._counted, **_of_workers(live)})
        metrics.database_up.set(1)


def _of_jobs(found: Sequence[OpenJobs], undelivered: int) -> Values:
    known = {name: OpenJobs(task_type=name) for name in task_types.names()}
    shown = {**known, **{one.task_type: one for one in found}}  # a known type has zeros, not gaps
    return {
        "llm_open_jobs": {
            (name, state): getattr(one, state)
            for name, one in shown.items()
            for state in ("queued", "running", "waiting")
        },
        "llm_oldest_queued_job_seconds": {
            (name,): one.oldest_s or 0.0 for name, one in shown.items()
        },
        "llm_undelivered_jobs": {(): undelivered},
    }


def _of_workers(live: Sequence[WorkerRow]) -> Values:
    slots: dict[tuple[str, ...], float] = {
        (name,): sum(one.concurrency for one in live if task_types.queue(name) in one.queues)
        for name in task_types.names()
    }
    return {"llm_workers": {(): len(live)}, "llm_worker_slots": slots}
