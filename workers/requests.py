"""What those who watch Celery's events see of a job's end: Flower above all."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from celery.worker import request

from llmtasks.errors import JobCancelled

_CANCELLED = f"{JobCancelled.__name__}("


class Request(request.Request):  # type: ignore[misc]  # Celery ships no types
    """As Celery's; a cancelled job is no failed one, and a result is short enough for a column."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  # Celery's own
        """Send what became of the task."""
        if type == "task-failed" and str(fields.get("exception")).startswith(_CANCELLED):
            type = "task-revoked"  # noqa: A001
            fields = {"terminated": False, "signum": None, "expired": False}
        elif type == "task-succeeded":
            fields["result"] = _short(fields.get("result"))
        super().send_event(type, **fields)


def _short(result: object) -> object:
    """`simulated (openai): 310 + 60 tokens, $0.00012` of a job's result; another one as it is."""
    try:
        found = ast.literal_eval(str(result))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return result
    if not isinstance(found, Mapping) or not {"usage", "cost_usd", "model"} <= found.keys():
        return result
    usage, cost = found["usage"], found["cost_usd"]
    who = f"{found['model']} ({found['provider']})" if found["model"] else "no model"
    if found.get("cached"):
        return f"{who}: answered before"
    price = "price unknown" if cost is None else f"${cost:.6f}".rstrip("0").rstrip(".")
    return f"{who}: {usage['input_tokens']} + {usage['output_tokens']} tokens, {price}"
