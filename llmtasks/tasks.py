"""process_document and nothing else: headers, outcomes, delegate.

The producer's side of the task commits the job's row, then rings; the worker's side hands the message to
the executor that `workers.app` bound, and turns its outcome into what Celery understands.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import celery
from celery.exceptions import Ignore, Reject, Retry
from celery.result import AsyncResult
from celery.utils import uuid

from llmtasks import logs, submission
from llmtasks.celery_app import (
    DIRECT_PRIORITY,
    FED_PRIORITY,
    SENT_AT,
    TASK_NAME,
    BrokerAway,
    app,
    bounded,
    later,
)
from llmtasks.errors import (
    ConfigurationError,
    InvalidOption,
    LLMTasksError,
    StoreUnavailable,
    UsageError,
)
from llmtasks.jobs import (
    MAX_PRIORITY,
    REFUSED_OPTION,
    Completed,
    Elsewhere,
    NewJob,
    Outcome,
    Parked,
    Refused,
)
from llmtasks.settings import current
from llmtasks.store.process import database

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_log = logs.get("client")

#: Bytes that the chain, chord and callbacks of a message may have as JSON. A chain of a thousand jobs has a
#: quarter of it.
MAX_CANVAS_BYTES = 1_048_576

_CANVAS = ("group_index", "chord", "chain", "link", "link_error", "root_id", "parent_id")


class Handler(Protocol):
    """What a worker process binds: runs one message; raises the typed error of a failed job."""

    def __call__(
        self,
        job: NewJob,
        *,
        waiting: Callable[[str, float], None],
        progress: Callable[[str], None],
        sent_at: float | None,
    ) -> Outcome:
        """Run it; `waiting` and `progress` tell whoever watches the task.

        `sent_at` is when its row rang, in seconds since the epoch; None where no row may be.
        """


_handler: Handler | None = None


def bind(handler: Handler) -> None:
    """Give this process' messages to `handler`. Called by a worker's composition root."""
    global _handler  # noqa: PLW0603  # the one seam between Celery's task and our process
    _handler = handler


class Result(AsyncResult):  # type: ignore[misc]  # Celery ships no types
    """Celery's result of a job, for which nobody waits while it is sent."""

    def then(self, callback: Any, on_error: Any = None, weak: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Subscribe, if the broker's server answers in time.

        A group subscribes to each of its jobs while it sends them; `.get()` does so anew.
        """
        subscribe = functools.partial(super().then, callback, on_error, weak)
        try:
            return bounded(subscribe, current().delivery.publish_timeout_s)
        except BrokerAway:
            return self.on_ready.then(callback, on_error)

    def __del__(self) -> None:
        # Celery unsubscribes here, on whatever thread drops the result, and tries for 20 s when its server
        # is away.
        if not sys.is_finalizing():
            later(super().__del__)


class JobTask(celery.Task):  # type: ignore[misc]  # Celery ships no types
    """A task whose every enqueue (`delay`, `apply_async`, a group) writes the job's row first."""

    abstract = True
    #: Read by a worker alone.
    Request = "workers.requests:Request"

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> Any:
        """Record the job, then publish it; returns Celery's `AsyncResult`, whose id is the job's.

        Raises:
            UnknownTaskType, InvalidOption: at once, and nothing is recorded.
        """
        from llmtasks.store import jobs

        job = described(args, kwargs, job_id=task_id or uuid(), options=options)
        settings = current()
        if settings.delivery.record:
            jobs.insert(database(), [job], sent=True)
            options["headers"] = {**(options.get("headers") or {}), SENT_AT: time.time()}
        else:
            jobs.check(job)
        logs.info(
            _log,
            "job-submitted",
            job=job.job_id,
            batch=job.batch_id,
            document=job.document_id,
            task=job.task_type,
        )
        options["priority"] = DIRECT_PRIORITY if job.direct else FED_PRIORITY
        given = submission.message_options(job)
        options["kwargsrepr"] = submission.shown(given)
        publish = functools.partial(
            celery.Task.apply_async,
            self,
            (job.document_id, job.task_type),
            given,
            task_id=job.job_id,
            **options,
        )
        try:
            return bounded(publish, settings.delivery.publish_timeout_s)
        except BrokerAway as away:
            if not settings.delivery.record:
                raise ConfigurationError(
                    f"{away}; with delivery.record = false nothing else keeps this job: try again"
                ) from away
            jobs.unsend(database(), [job.job_id])
            return self.AsyncResult(job.job_id)

    def AsyncResult(self, task_id: str, **options: Any) -> Result:  # noqa: N802  # Celery's name
        """Celery's result of a job by its id."""
        return Result(task_id, backend=self.backend, task_name=self.name, app=self.app, **options)

    def apply(self, *_args: Any, **_options: Any) -> Any:
        """Refused: a job runs in a worker, which has what it needs.

        Raises:
            UsageError: always.
        """
        raise UsageError("process_document runs in workers: use delay or apply_async")


@app.task(base=JobTask, bind=True, name=TASK_NAME, throws=(LLMTasksError,))  # type: ignore[untyped-decorator]
def process_document(
    self: JobTask, document_id: str, task_type: str, **options: Any
) -> dict[str, Any]:
    """Summarize, extract from, or translate one stored document.

    Args:
        self: The bound task.
        document_id: Of a document added before (`add_document`, `llmtasks documents add`).
        task_type: `summarize`, `extract`, `translate`, or one of your own.
        options: The task type's own, and `tenant`, `priority` (0-9, 9 first), `fresh` (ask again),
            `stream` (its answer can be watched while it is written), `deadline_s` (seconds it may take from
            now, waiting included; then it fails).

    Returns:
        `{"status", "document_id", "task_type", "job_id", "cached", "provider", "model", "usage",
        "cost_usd"}`; the output itself is in SQL: `get_result(job_id)`.
    """
    if _handler is None:
        time.sleep(1.0)  # it comes right back, to a worker that can, let us hope
        raise Reject("no executor is bound: run workers with `llmtasks worker`", requeue=True)
    request = self.request
    job = received(request, document_id, task_type, options)

    def waiting(reason: str, delay: float) -> None:
        # A wait in place publishes nothing, but Flower shall show it for what it is.
        self.send_event("task-retried", exception=reason, traceback=f"retry in {delay:.1f} s")

    def progress(text: str) -> None:
        self.send_event("task-progress", result=text)

    try:
        outcome = _handler(job, waiting=waiting, progress=progress, sent_at=request.get(SENT_AT))
    except StoreUnavailable as away:
        raise Reject(str(away), requeue=True) from None
    match outcome:
        case Completed(result):
            return dict(result)
        case Parked(delay, error):
            # Raised, not `self.retry`: that would publish a countdown message beside the row.
            raise Retry(exc=error, when=delay, message=str(error))
        case Elsewhere():
            raise Ignore


def described(
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    *,
    job_id: str,
    options: Mapping[str, Any],
) -> NewJob:
    """The job that a producer's call describes, checked."""
    bound = dict(zip(("document_id", "task_type"), args or (), strict=False))
    given = {**bound, **(kwargs or {})}
    if args is not None and len(args) > len(bound):
        raise InvalidOption("process_document takes document_id and task_type; name the options")
    for name in ("document_id", "task_type"):
        if not isinstance(given.get(name), str) or not given[name]:
            raise InvalidOption(f"process_document needs {name}, a text")
    for name in ("eta", "countdown"):
        if options.get(name) is not None:
            raise InvalidOption(f"{name} is not supported: waiting jobs are rows, not messages")
    document_id, task_type = given.pop("document_id"), given.pop("task_type")
    return NewJob(
        job_id=job_id,
        document_id=document_id,
        task_type=task_type,
        **submission.checked(task_type, given, options.get("priority")),
        direct=not options.get("ignore_result", False),
        batch_id=options.get("group_id"),
        canvas=_canvas(options),
    )


def received(request: Any, document_id: str, task_type: str, options: Mapping[str, Any]) -> NewJob:
    """The job that a message describes, unchecked: a wrong option fails the job, not the message.

    What no row shall hold is left out of it, and it is one that can only fail, also when it is retried.
    """
    own = dict(options)
    tenant = own.pop("tenant", "default")
    priority = own.pop("priority", 0)
    fresh, stream = bool(own.pop("fresh", False)), bool(own.pop("stream", False))
    given = own.pop("deadline_s", None)
    deadline_s, no_deadline = _tried(submission.deadline, given)
    canvas, no_canvas = _tried(_checked_canvas, request)
    sized, no_options = _tried(_sized, own)
    fault = no_deadline or no_options or no_canvas
    kept = dict(sized or {})
    make: Callable[..., NewJob] = NewJob
    if fault is not None:
        kept[REFUSED_OPTION] = fault
        make = functools.partial(Refused, fault=fault)
    return make(
        job_id=request.id,
        document_id=str(document_id),
        task_type=str(task_type),
        tenant=tenant if isinstance(tenant, str) else "default",
        options=kept,
        priority=priority if isinstance(priority, int) and 0 <= priority <= MAX_PRIORITY else 0,
        fresh=fresh,
        stream=stream,
        deadline_s=deadline_s,
        direct=not request.ignore_result,
        batch_id=request.group,
        canvas=canvas,
    )


def _tried(read: Callable[[Any], T], given: object) -> tuple[T | None, str | None]:
    """What is read, or why it cannot be."""
    try:
        return read(given), None
    except InvalidOption as error:
        return None, str(error)


def _sized(options: Mapping[str, Any]) -> Mapping[str, Any]:
    submission.check_size(options)
    return options


def _checked_canvas(request: Any) -> dict[str, Any] | None:
    found = {
        "group_index": request.group_index,
        "chord": request.chord,
        "chain": request.chain,
        "link": request.callbacks,
        "link_error": request.errbacks,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
    }
    submission.check_size(found, what="chain, chord and callbacks", most=MAX_CANVAS_BYTES)
    return _canvas(found)


def _canvas(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What Celery has to be told again when a job is sent again: its chord and its callbacks."""
    found = {name: options[name] for name in _CANVAS if options.get(name) not in (None, [], ())}
    if not found or set(found) <= {"root_id", "group_index"}:
        return None
    # Signatures are dicts of plain values; a round trip leaves nothing of Celery's classes.
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain
