"""What is told of a job's end to Celery, and by its events to those who watch: Flower above all."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from celery import signals
from celery.app import trace
from celery.exceptions import Retry
from celery.worker import request

from llmtasks.errors import JobCancelled, LLMTasksError

_CANCELLED = f"{JobCancelled.__name__}("


class Request(request.Request):  # type: ignore[misc]  # Celery ships no types
    """As Celery's; a cancelled job is no failed one, and a result is short enough for a column."""

    _why: str | None = None

    def on_retry(self, exc_info: Any) -> None:
        """A parked job: say why, and not in Celery's own wrapping of it."""
        cause = exc_info.exception
        while cause is not None and not isinstance(cause, LLMTasksError):
            cause = getattr(cause, "exc", None)
        self._why = None if cause is None else repr(cause)
        super().on_retry(exc_info)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  # Celery's own
        """Send what became of the task."""
        if type == "task-failed" and str(fields.get("exception")).startswith(_CANCELLED):
            type = "task-revoked"  # noqa: A001
            fields = {"terminated": False, "signum": None, "expired": False}
        elif type == "task-succeeded":
            fields["result"] = _short(fields.get("result"))
        elif type == "task-retried" and self._why is not None:
            fields["exception"] = self._why
        super().send_event(type, **fields)


class TraceInfo(trace.TraceInfo):  # type: ignore[misc]  # Celery ships no types
    """As Celery's; a parked job has no traceback.

    It says where a worker parks jobs, which is one line of ours, and collecting it (billiard copies the
    positions of every instruction of every frame, to send them to another process) takes a quarter of the
    CPU of a worker that gives its jobs back.
    """

    def handle_retry(self, task: Any, req: Any, store_errors: bool = True, **_: Any) -> Any:  # noqa: FBT001, FBT002  # Celery's own
        """As Celery's, but for that and for its line in the log, where ours says more."""
        retry: Retry = self.retval
        told = _Untraced(retry)
        if store_errors:
            task.backend.mark_as_retry(req.id, retry.exc, told.traceback, request=req)
        task.on_retry(retry.exc, req.id, req.args, req.kwargs, told)
        signals.task_retry.send(sender=task, request=req, reason=retry, einfo=told)
        trace.traceback_clear(retry)
        return told


class _Untraced(trace.ExceptionInfo):  # type: ignore[misc]
    """An exception, and nothing of where it was raised."""

    tb = None
    traceback = ""
    internal = False

    def __init__(self, error: Exception) -> None:
        self.type, self.exception = type(error), error


def _short(result: object) -> object:
    """`gpt-4o-mini: 310 + 60 tokens, $0.00012` of a job's result; another one as it is."""
    try:
        found = ast.literal_eval(str(result))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return result
    if not isinstance(found, Mapping) or not {"usage", "cost_usd", "model"} <= found.keys():
        return result
    usage, cost = found["usage"], found["cost_usd"]
    who = found["model"] or "no model"
    if found.get("cached"):
        return f"{who}: answered before"
    price = "$?" if cost is None else f"${cost:.6f}".rstrip("0").rstrip(".")
    return f"{who}: {usage['input_tokens']} + {usage['output_tokens']} tokens, {price}"
