"""How commands print: JSON for scripts, short lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from llmtasks.client import JobResult
from llmtasks.store.batches import BatchStatus

F = TypeVar("F", bound=Callable[..., Any])

json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for scripts."
)
tenant_option: Callable[[F], F] = click.option(
    "--tenant", default="default", show_default=True, help="Whose documents these are."
)


#: The keys of a line of `results --format jsonl`, in their order.
RESULT_KEYS = (
    "job_id",
    "document_id",
    "task_type",
    "state",
    "output",
    "error",
    "provider",
    "model",
    "usage",
    "cost_usd",
    "cached",
)


def print_json(value: Any) -> None:
    """One line of JSON; text stays readable where the terminal can show it."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


def money(cost_usd: float | None) -> str:
    """Dollars, or the honest word for a price nobody knows."""
    return "unknown" if cost_usd is None else f"${cost_usd:.6f}".rstrip("0").rstrip(".")


def status_json(status: BatchStatus) -> dict[str, Any]:
    """The stable shape of `status --json`."""
    return {
        "batch_id": status.batch_id,
        "state": status.state,
        "total": status.total,
        "queued": status.queued,
        "running": status.running,
        "waiting": status.waiting,
        "completed": status.completed,
        "failed": status.failed,
        "cancelled": status.cancelled,
        "cached": status.cached,
        "usage": {"input_tokens": status.input_tokens, "output_tokens": status.output_tokens},
        "cost_usd": status.cost_usd,
        "reasons": dict(status.reasons),
    }


def status_lines(status: BatchStatus) -> list[str]:
    """The same for people: what matters first, and why anything waits."""
    counts = ", ".join(
        f"{count} {name}"
        for name, count in (
            ("completed", status.completed),
            ("failed", status.failed),
            ("running", status.running),
            ("waiting", status.waiting),
            ("queued", status.queued),
            ("cancelled", status.cancelled),
        )
        if count
    )
    return [
        f"{status.batch_id}  {status.state}",
        f"  jobs    {status.total}: {counts or 'none'} ({status.cached} answered from the store)",
        f"  tokens  {status.input_tokens} in, {status.output_tokens} out",
        f"  cost    {money(status.cost_usd)}",
        *(f"  waiting {count}: {reason}" for reason, count in status.reasons.items()),
    ]


def result_json(result: JobResult) -> dict[str, Any]:
    """The stable shape of a line of `results --format jsonl`."""
    return {name: result[name] for name in RESULT_KEYS}


def result_cells(result: JobResult) -> Mapping[str, Any]:
    """The same as flat cells of a table; a structured output is JSON in its cell."""
    line = result_json(result)
    error, usage, output = line.pop("error"), line.pop("usage"), line.pop("output")
    return {
        **line,
        "output": output
        if isinstance(output, str) or output is None
        else json.dumps(output, ensure_ascii=False),
        "error_type": error and error["type"],
        "error_message": error and error["message"],
        **usage,
    }
