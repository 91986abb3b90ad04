"""Which of its queues a worker consumes: none whose task type no provider can serve for a while.

Jobs of a blocked type would be claimed only to be parked again, one write after the other, in slots that
other types need. Who decides on calls knows how long a block lasts; Celery's consumer does the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from llmtasks import logs
from llmtasks.admission import Decider
from llmtasks.loop import LoopThread
from llmtasks.settings import Settings
from llmtasks.task_types import queue as queue_of

_log = logs.get("consumption")

#: Seconds to wait for whoever knows the blocks.
ASK_S = 10.0


def pauses(
    before: Mapping[str, float],
    blocked: Mapping[str, float | None],
    now: float,
    park_after_s: float,
) -> dict[str, float]:
    """The task types whose queues rest, with the time until which that is known; all in seconds.

    `blocked` says for how long nobody can serve a type, None where nobody could tell: what was told last
    holds to its end then, and no longer, because a job may also wait in a slot. A queue that rests does so
    until its block is over; one that does not is left to the slots for the last `park_after_s`.
    """
    after: dict[str, float] = {}
    for task_type, seconds in blocked.items():
        if seconds is None:
            if before.get(task_type, now) > now:
                after[task_type] = before[task_type]
        elif seconds > (0.0 if task_type in before else park_after_s):
            after[task_type] = now + seconds
    return after


class Consumption:
    """Keeps one worker's consumer to the queues that can be served.

    Args:
        fleet: Knows the blocks.
        loop: Where `fleet` lives.
        settings: The whole configuration.
        task_types: Those that this worker serves.
        rest: Told the queues that are not to be consumed now, again and again; see `Consumer.rest`.
    """

    def __init__(
        self,
        *,
        fleet: Decider,
        loop: LoopThread,
        settings: Settings,
        task_types: Sequence[str],
        rest: Callable[[frozenset[str]], None],
    ) -> None:
        self._fleet = fleet
        self._loop = loop
        self._interval_s = settings.dispatch.interval_s
        self._park_after_s = settings.dispatch.park_after_s
        self._providers = {
            name: tuple(p.name for p in settings.providers_for(name)) for name in task_types
        }
        self._rest = rest
        self._resting: dict[str, float] = {}
        self._soon = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._until_stopped, name="llmtasks-consumption", daemon=True
        )

    def start(self) -> None:
        """Look at once, and then all the time."""
        self._soon.set()
        self._thread.start()

    def look_soon(self) -> None:
        """A job has just been parked: its type may be blocked."""
        self._soon.set()

    def stop(self, timeout: float | None = None) -> None:
        """Change nothing any more; with a `timeout` in seconds, wait for the thread to end."""
        self._stopping.set()
        self._soon.set()
        if timeout is not None:
            self._thread.join(timeout)

    def _until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._soon.wait(self._interval_s)
            self._soon.clear()
            if self._stopping.is_set():
                return
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # a defect must not let a queue rest for ever
                logs.error(_log, "look-broken", why=type(error).__name__, at=logs.place(error))
                self._resting = {}

    def look(self) -> None:
        """See who is blocked, and have the consumer act accordingly."""
        told = {names: self._blocked_for(names) for names in set(self._providers.values())}
        before = self._resting
        self._resting = pauses(
            before,
            {task_type: told[names] for task_type, names in self._providers.items()},
            time.monotonic(),
            self._park_after_s,
        )
        for task_type in self._resting.keys() - before.keys():
            logs.info(_log, "queue-rests", queue=queue_of(task_type))
        for task_type in before.keys() - self._resting.keys():
            logs.info(_log, "queue-resumes", queue=queue_of(task_type))
        if not self._stopping.is_set():
            self._rest(frozenset(map(queue_of, self._resting)))

    def _blocked_for(self, providers: Sequence[str]) -> float | None:
        """Seconds until one of them can serve; None when that cannot be told."""
        try:
            seconds, _ = self._loop.run(self._fleet.blocked_for(providers), timeout=ASK_S)
        except Exception:  # noqa: BLE001  # whatever it is, the maintenance meets and tells it, too
            return None
        return seconds
