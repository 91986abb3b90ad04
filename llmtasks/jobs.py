"""A job, its states, and the moves between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from llmtasks.errors import LLMTasksError

#: Highest job priority; 0 is the normal one. Ours, not the broker's.
MAX_PRIORITY = 9


def json_size(value: object) -> int:
    """Bytes of a value as JSON, in UTF-8.

    Raises:
        ValueError, TypeError, RecursionError: it is none: NaN, an object, nested too deeply.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return len(text.encode("utf-8", "surrogatepass"))


class JobState(StrEnum):
    """Where a job stands. The database moves it by conditional update only."""

    QUEUED = "queued"  # may be claimed; sent to the broker, or about to be
    RUNNING = "running"  # claimed by a worker that holds the fence
    WAITING = "waiting"  # parked until `not_before`: rate limit, outage or backoff
    COMPLETED = "completed"  # its result is stored
    FAILED = "failed"  # ended with a typed error
    CANCELLED = "cancelled"  # ended by its user


#: The allowed moves. A retry of an ended job is a move too: FAILED or CANCELLED back to QUEUED. What nobody
#: runs fails by its deadline.
MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.WAITING,
            JobState.COMPLETED,
            JobState.FAILED,
            JobState.CANCELLED,
        }
    ),
    JobState.WAITING: frozenset(
        {JobState.QUEUED, JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}

#: The option that a refused job's row has, with the reason: it fails for it again when it is retried. No
#: task type can have an option of this name.
REFUSED_OPTION = "llmtasks.refused"

#: States a job does not leave by itself.
ENDED = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Completed:
    """What became of a message: the job is done; `result` is what its caller gets."""

    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parked:
    """What became of a message: the row waits `delay` seconds because of `error`, and is sent again."""

    delay: float
    error: LLMTasksError


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What became of a message: nothing. Its row waits, or somebody else runs it."""


Outcome = Completed | Parked | Elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as its producer describes it, before it has a row.

    `direct` jobs (`delay`, a Celery group) are published by their producer and keep a Celery result;
    the others belong to a batch that the feeder hands to the broker piece by piece. `canvas` is what
    Celery has to be told again when the job is sent again: its chord, callbacks and place in a group.
    With `stream` its answer can be watched while it is written.
    `deadline_s` is how many seconds it may take from its submission (or its retry); None: any.
    """

    job_id: str
    document_id: str
    task_type: str
    tenant: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    fresh: bool = False
    stream: bool = False
    direct: bool = True
    batch_id: str | None = None
    canvas: Mapping[str, Any] | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(NewJob):
    """A job as a foreign message describes it, which can only fail: `fault` says why, and so do its options
    (`REFUSED_OPTION`), for a retry.
    """

    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(NewJob):
    """A job as its row says. Times are seconds since the epoch, on the database's clock.

    `fence` grows with every claim: only the holder of the newest one can commit. `attempts` counts
    claims that were not given back, `deferrals` waits that cost no attempt, `crashes` workers lost.
    """

    state: JobState
    fence: int = 0
    attempts: int = 0
    deferrals: int = 0
    crashes: int = 0
    worker_id: str | None = None
    not_before: float | None = None
    reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    created_at: float = 0.0
    finished_at: float | None = None
    deadline_at: float | None = None
