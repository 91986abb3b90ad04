"""What only those ask who watch: when, until when, served by whom, answered how often."""

from __future__ import annotations

from llmtasks import task_types
from llmtasks.errors import UnknownJob
from llmtasks.store import batches, calls, workers
from llmtasks.store.batches import Times
from llmtasks.store.calls import Recent
from llmtasks.store.process import database

#: How far back answers are counted: seconds, and calls.
_RECENT_S = 3_600.0
_RECENT_CALLS = 20_000


def times(target: str) -> Times:
    """When a batch, a Celery group or a job was submitted, and when the last of it ended.

    Raises:
        UnknownJob: Nothing has this id.
    """
    found = batches.times(database(), target)
    if found is None:
        raise UnknownJob.named(target)
    return found


def newest_batch() -> str:
    """The id of the batch or Celery group that was submitted last.

    Raises:
        UnknownJob: There is none.
    """
    found = batches.newest(database())
    if found is None:
        raise UnknownJob("there is no batch yet; submit one with: llmtasks submit")
    return found


def next_try_s(target: str) -> float | None:
    """Seconds until the first waiting job of a batch is tried again; None when none waits."""
    return batches.next_due_s(database(), target)


def unserved(target: str) -> list[str]:
    """The queues with open jobs of a batch (or of a job) that no live worker serves."""
    served = {queue for worker in workers.live(database()) for queue in worker.queues}
    known = task_types.names()
    names = batches.open_task_types(database(), target)
    wanted = {task_types.queue(name) for name in names if name in known}
    return sorted(wanted - served)


def recent_answers() -> Recent:
    """What each provider answered in the last hour, or in less where that is very much."""
    return calls.recent(database(), _RECENT_S, _RECENT_CALLS)
