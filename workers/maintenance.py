"""The periodic work of every worker process, leaderless: whoever wins a conditional update does it.

Two threads, because a lease must be renewed whatever the broker does: `beat` renews this process' lease
and takes over from the dead; `feed` hands rows to the broker and sends again what it forgot.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from llmtasks import logs, metrics
from llmtasks.admission import Decider, ProviderState
from llmtasks.celery_app import TOLD_QUEUE, app, depth, send
from llmtasks.errors import AdmissionUnavailable, LLMTasksError
from llmtasks.executor import Executor
from llmtasks.loop import LoopThread
from llmtasks.retry import describe
from llmtasks.settings import Settings
from llmtasks.store import deadlines, feed, jobs
from llmtasks.store import workers as leases
from llmtasks.store.engine import Database
from llmtasks.store.feed import Sendable
from llmtasks.submission import message_options, shown
from llmtasks.task_types import queue as queue_of
from workers.deliveries import Deliveries

_log = logs.get("maintenance")

#: Heartbeats per lease: four may be lost before the fifth.
BEATS_PER_LEASE = 5

#: Rows a queue gets at the least, per slot that serves it: a slot must not wait for the next feeding.
ROWS_PER_SLOT = 2

#: Seconds between two searches for messages that the broker forgot.
FORGOTTEN_S = 2.0

#: Rows sent again, or woken, in one go.
CHUNK = 500

#: Rows that are rung for in one round trip. When it fails, all of them are rung for again.
PUBLISHED_TOGETHER = 100

#: Rows whose deadline has passed that are ended in one go.
OVERDUE_CHUNK = 2_000


class Maintenance:
    """Periodic work of one process; see the module."""

    def __init__(
        self,
        *,
        db: Database,
        executor: Executor,
        fleet: Decider,
        loop: LoopThread,
        settings: Settings,
        worker_id: str,
        register: Callable[[], None],
        task_types: Sequence[str],
        deliveries: Deliveries | None = None,
    ) -> None:
        self._db = db
        self._executor = executor
        self._fleet = fleet
        self._loop = loop
        self._settings = settings
        self._worker_id = worker_id
        self._register = register
        self._task_types = tuple(task_types)
        self._deliveries = deliveries
        self._stopping = threading.Event()
        self._not_feeding = threading.Event()
        self._steady_since = self._beaten_at = time.monotonic()
        self._strays: set[str] = set()
        self._troubles: dict[str, str | None] = {}
        self._threads = [
            threading.Thread(target=self._beat_until_stopped, name="llmtasks-beat", daemon=True),
            threading.Thread(target=self._feed_until_stopped, name="llmtasks-feed", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop_feeding(self) -> None:
        """Hand no more rows to the broker; the lease goes on until `stop`."""
        self._not_feeding.set()

    def stop(self) -> None:
        """End both threads."""
        self._not_feeding.set()
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=10.0)

    # --- the lease ---------------------------------------------------------------------------------

    @property
    def _beat_s(self) -> float:
        return self._settings.delivery.lease_s / BEATS_PER_LEASE

    def _beat_until_stopped(self) -> None:
        while not self._stopping.wait(self._beat_s):
            try:
                self.beat()
            except LLMTasksError as error:
                self._not_steady()
                logs.warning(_log, "beat-failed", why=describe(error))
            except Exception as error:  # noqa: BLE001  # a defect must not end the lease
                logs.error(_log, "beat-broken", why=type(error).__name__, at=logs.place(error))

    def _not_steady(self) -> None:
        """Others may not have renewed anything either: give them time to, before taking from them."""
        self._steady_since = time.monotonic() + self._beat_s

    def beat(self) -> None:
        """Renew the lease, hear of cancelled jobs, and take over from workers whose lease passed."""
        began = time.monotonic()
        if began - self._beaten_at > 2 * self._beat_s:
            self._not_steady()  # others may have waited for what this process held while it was stopped
        self._beaten_at = began
        if not self._loop.answers(self._beat_s):
            # Slots wait for it in vain: let the lease run out, and others take over.
            logs.error(_log, "loop-stuck", worker=self._worker_id)
            return
        if not leases.heartbeat(self._db, self._worker_id, self._settings.delivery.lease_s):
            # Stalled beyond the lease: our jobs have gone to others, our fences are void.
            logs.warning(_log, "lease-lost", worker=self._worker_id)
            self._not_steady()  # a machine that was suspended did not count that time
            self._register()
        self._executor.cancel(jobs.running_cancelled(self._db, self._worker_id))
        self._release_strays()
        if self._deliveries is not None:
            self._deliveries.renew()
        now = time.monotonic()
        if now - began > self._beat_s:
            self._not_steady()  # what this waited for may have kept others from renewing theirs
        elif now - self._steady_since >= self._beat_s:
            self._take_over()

    def _release_strays(self) -> None:
        """Give back rows that are ours only in the database: the answer to their claim was lost."""
        strays = jobs.running(self._db, self._worker_id) - self._executor.active
        for job_id in strays & self._strays:
            stray = jobs.held(self._db, self._worker_id, job_id)
            # Looked at once more: it may have been taken from us meanwhile, and come again.
            if stray is not None and job_id not in self._executor.active:
                jobs.release(self._db, stray, attempts=stray.attempts - 1)
                logs.warning(_log, "stray-released", job=job_id)
        self._strays = strays  # a claim on its way looks the same: only those seen twice are strays

    def _take_over(self) -> None:
        to_sink = self._settings.results.sink is not None
        reaped = leases.reap(self._db, self._settings.delivery.max_crashes, to_sink=to_sink)
        metrics.lost_workers.inc(reaped.workers)
        metrics.taken_over_jobs.labels("requeued").inc(reaped.requeued)
        metrics.taken_over_jobs.labels("failed").inc(reaped.failed)
        if reaped.requeued or reaped.failed:
            logs.warning(_log, "took-over", requeued=reaped.requeued, failed=reaped.failed)

    # --- the feed ----------------------------------------------------------------------------------

    def _feed_until_stopped(self) -> None:
        searched = 0.0
        while not self._not_feeding.wait(self._settings.dispatch.interval_s):
            search = time.monotonic() - searched >= FORGOTTEN_S
            searched = time.monotonic() if search else searched
            self._try("deadlines", self.end_overdue)
            self._try("wake", lambda: feed.wake_due(self._db, CHUNK))
            if search:
                self._try("observe", self.observe)
            for task_type in self._task_types:
                self._try(task_type, functools.partial(self.feed, task_type))
                self._try(task_type, functools.partial(self.tell, task_type))
                if search:
                    self._try(task_type, functools.partial(self.send_forgotten, task_type))

    def _try(self, what: str, action: Callable[[], object]) -> None:
        """Do it; a trouble is logged when it is a new one, and the next turn tries again."""
        if self._not_feeding.is_set():
            return  # each may have to wait for a server that hangs
        trouble = None
        try:
            action()
        except LLMTasksError as error:
            trouble = describe(error)
        except Exception as error:  # noqa: BLE001  # a broker that is away, or a defect
            trouble = f"{type(error).__name__} at {logs.place(error)}"
        if trouble and trouble != self._troubles.get(what):
            logs.warning(_log, "feed-failed", what=what, why=trouble)
        self._troubles[what] = trouble

    def end_overdue(self) -> int:
        """Fail what was not done by its deadline; how many jobs."""
        to_sink = self._settings.results.sink is not None
        ended = deadlines.end_overdue(self._db, OVERDUE_CHUNK, to_sink=to_sink)
        if ended:
            logs.warning(_log, "deadlines-exceeded", jobs=ended)
        return ended

    def observe(self) -> None:
        """Show who decides on calls, and how the providers stand, as the whole fleet sees them."""
        try:
            statuses = self._loop.run(self._fleet.status(), timeout=10.0)
        except Exception:
            metrics.show_admission("alone" if self._fleet.on_its_own else "away")
            raise
        metrics.show_admission("fleet")
        for status in statuses:
            metrics.provider_effective_limit.labels(status.name).set(status.effective_ratio)
            metrics.provider_waiting.labels(status.name).set(status.waiting)
            metrics.provider_opening.labels(status.name).set(status.next_opening)
            if status.in_flight is not None:
                metrics.provider_in_flight.labels(status.name).set(status.in_flight)
            for one in status.dimensions:
                metrics.provider_limit.labels(status.name, one.name).set(one.per_minute)
                metrics.provider_promised.labels(status.name, one.name).set(one.ahead_s)
            for state in ProviderState:
                metrics.provider_state.labels(status.name, state).set(state == status.state)

    def tell(self, task_type: str) -> int:
        """Tell callers in `.get()` whose jobs ended without a message that would; how many.

        Not through the queue of their type, which may rest.
        """
        rows = feed.untold(self._db, task_type, CHUNK)
        self._publish(rows, queue=TOLD_QUEUE)
        return len(rows)

    def feed(self, task_type: str) -> int:
        """Fill one queue up to its window; how many rows were sent."""
        interval = self._settings.dispatch.interval_s
        if not feed.lanes(self._db, task_type) or not feed.turn(self._db, task_type, interval / 2):
            return 0
        if self._blocked(task_type):
            return 0
        room = self._window(task_type) - feed.depth(self._db, task_type)
        rows = feed.fill(self._db, task_type, room, self._settings.dispatch.ageing_s)
        self._publish(rows)
        return len(rows)

    def _window(self, task_type: str) -> int:
        """Rows of a queue that the broker should hold: `window_s` of work, and enough for every slot."""
        queue = queue_of(task_type)
        slots = sum(w.concurrency for w in leases.live(self._db) if queue in w.queues)
        window = self._settings.dispatch.window_s
        rate = feed.finished_rate(self._db, task_type, window)
        return max(ROWS_PER_SLOT * slots, round(rate * window))

    def _blocked(self, task_type: str) -> bool:
        """Nothing is fed for a task type that no provider can serve now."""
        names = [p.name for p in self._settings.providers_for(task_type)]
        try:
            blocked, _ = self._loop.run(self._fleet.blocked_for(names), timeout=10.0)
        except (AdmissionUnavailable, TimeoutError):
            return True
        return blocked > 0

    def send_forgotten(self, task_type: str) -> int:
        """Send again what SQL knows and the broker does not; how many rows."""
        empty = self._depth(task_type) == 0
        rows = feed.forgotten(
            self._db,
            task_type,
            self._settings.delivery.resend_after_s,
            queue_empty=empty,
            limit=CHUNK,
        )
        if rows:
            logs.info(_log, "sent-again", task=task_type, jobs=len(rows))
        self._publish(rows)
        return len(rows)

    def _depth(self, task_type: str) -> int:
        """What the broker holds, which is shown as well; nothing is while it does not say."""
        queue = queue_of(task_type)
        try:
            found = depth(task_type)
        except Exception:
            metrics.hide_queue(queue)
            raise
        metrics.queue_messages.labels(queue).set(found)
        return found

    def _publish(self, rows: Sequence[Sendable], *, queue: str | None = None) -> None:
        """Ring for rows that are marked as sent; those that could not be are unmarked."""
        if not rows:
            return
        sent = 0
        try:
            with app.producer_or_acquire() as producer:
                while some := rows[sent : sent + PUBLISHED_TOGETHER]:
                    with producer.batch():  # none of them is sent for sure before its end
                        for row in some:
                            _send(producer, row, queue)
                    sent += len(some)
        finally:
            if sent < len(rows):
                jobs.unsend(self._db, [row.job_id for row in rows[sent:]])


def _send(producer: Any, row: Sendable, queue: str | None) -> None:
    given = message_options(row)
    send(
        producer,
        job_id=row.job_id,
        args=(row.document_id, row.task_type),
        kwargs=given,
        shown=shown(given),
        keep_result=row.direct,
        group_id=row.batch_id if row.direct else None,
        canvas=row.canvas,
        queue=queue,
    )
