"""Deliveries to the user's sink: each ended job, after it was committed, at least once.

One thread per worker process claims due rows of the outbox, calls the function outside of any transaction,
and settles them. The lease's beat keeps the claims of the row in hand and of those delivered before it; the
others are given back after a second, or run out: a slow function holds no row that it has not been given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from llmtasks import logs
from llmtasks.client import RESULT_KEYS, job_result
from llmtasks.errors import LLMTasksError
from llmtasks.hooks import Sink
from llmtasks.jobs import JobState
from llmtasks.retry import describe
from llmtasks.settings import Settings
from llmtasks.store import outbox, results
from llmtasks.store.engine import Database
from llmtasks.store.outbox import Delivery
from llmtasks.store.results import ResultRow

_log = logs.get("sink")

#: Rows claimed at once, at the most.
CHUNK = 100

#: Seconds after which what was claimed and is not yet delivered is given back.
TURN_S = 1.0

#: Seconds before a row is tried again that the sink refused: doubling from the first to the last.
FIRST_DELAY_S = 1.0
LAST_DELAY_S = 300.0

#: Seconds a function may still take after the drain's end, before the process ends around it.
GRACE_S = 1.0


def delay(tries: int) -> float:
    """Seconds to wait after a failure, when `tries` have failed before."""
    return min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(tries, 30))


class Deliveries:
    """The thread that delivers; see the module."""

    def __init__(self, *, db: Database, sink: Sink, settings: Settings, worker_id: str) -> None:
        self._db = db
        self._sink = sink
        self._lease_s = settings.delivery.lease_s
        self._interval_s = settings.dispatch.interval_s
        self._turn_s = min(TURN_S, self._lease_s / 4)
        self._worker_id = worker_id
        self._room = CHUNK
        self._unsettled: list[str] = []
        self._stopping = threading.Event()
        self._until = float("inf")
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="llmtasks-sink", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, within_s: float) -> None:
        """End the thread once nothing is due, or after `within_s` seconds: the rest comes later."""
        self._until = time.monotonic() + within_s
        self._stopping.set()
        self._thread.join(within_s + GRACE_S)

    def renew(self) -> None:
        """Keep the claims of what the function was given and is not settled. Called with every beat of the
        worker's lease.
        """
        job_ids = list(self._unsettled)
        if job_ids:
            outbox.renew(self._db, self._worker_id, job_ids, self._lease_s)

    def turn(self) -> int:
        """Deliver the next due rows, for about a second; how many were claimed."""
        claimed = outbox.claim(self._db, self._worker_id, self._room, self._lease_s)
        if claimed:
            try:
                self._deliver_all(claimed)
            finally:
                self._unsettled = []
        return len(claimed)

    def _deliver_all(self, claimed: Sequence[Delivery]) -> None:
        rows = results.of_jobs(self._db, [one.job_id for one in claimed])
        ends = min(time.monotonic() + self._turn_s, self._until)
        delivered: list[Delivery] = []
        failed: list[tuple[Delivery, float]] = []
        last: BaseException | None = None
        for one in claimed:
            error = self._deliver(rows[one.job_id])
            if error is None:
                delivered.append(one)
            else:
                failed.append((one, delay(one.tries)))
                last = error
            if time.monotonic() >= ends:
                break
        if last is not None:
            self._complain(last, [one.job_id for one, _ in failed])
        done = len(delivered) + len(failed)
        self._room = min(CHUNK, 2 * done)
        outbox.settle(
            self._db,
            self._worker_id,
            delivered=delivered,
            failed=failed,
            untouched=claimed[done:],
        )

    def _run(self) -> None:
        while not (self._stopping.is_set() and time.monotonic() >= self._until):
            if self._turn_or_trouble():
                continue
            if self._stopping.is_set():
                return
            self._stopping.wait(self._interval_s)

    def _turn_or_trouble(self) -> int:
        """A turn; a trouble of ours is logged when it is a new one, and the next turn tries again."""
        trouble, claimed = None, 0
        try:
            claimed = self.turn()
        except LLMTasksError as error:
            trouble = describe(error)
        except BaseException as error:  # noqa: BLE001  # nothing may end the deliveries
            trouble = f"{type(error).__name__} at {logs.place(error)}"
        if trouble and trouble != self._trouble:
            logs.warning(_log, "deliveries-failed", why=trouble)
        self._trouble = trouble
        return claimed

    def _deliver(self, row: ResultRow) -> BaseException | None:
        """Call the function with an ended job; what it raised.

        A job that was retried meanwhile has not ended: its row comes again when it does.
        """
        if row.state not in (JobState.COMPLETED, JobState.FAILED):
            return None
        self._unsettled.append(row.job_id)
        try:
            self._sink(delivered(row))
        except BaseException as error:  # noqa: BLE001  # a cancelled asyncio task is no Exception
            return error
        return None

    def _complain(self, error: BaseException, job_ids: Sequence[str]) -> None:
        """One line a turn, however many rows were refused."""
        why = f"{self._sink.name} raised {type(error).__name__}"
        logs.warning(
            _log, "sink-failed", job=job_ids[-1], jobs=len(job_ids), why=why, at=logs.place(error)
        )


def delivered(row: ResultRow) -> dict[str, Any]:
    """What the function gets: a line of `results --format jsonl`, with its batch and tenant."""
    result = job_result(row)
    return {
        **{key: result[key] for key in RESULT_KEYS},
        "state": row.state.value,  # an enum is a foreign thing to a database's driver
        "batch_id": row.batch_id,
        "tenant": row.tenant,
    }
