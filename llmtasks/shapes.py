"""The shapes of JSON that scripts rely on: the same from the command line and from the API."""

from __future__ import annotations

from typing import Any

from llmtasks.client import RESULT_KEYS, JobResult
from llmtasks.store.batches import BatchStatus


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
        "taken_over": status.taken_over,
        "usage": {"input_tokens": status.input_tokens, "output_tokens": status.output_tokens},
        "cost_usd": status.cost_usd,
        "reasons": dict(status.reasons),
    }


def result_json(result: JobResult) -> dict[str, Any]:
    """The stable shape of a line of `results --format jsonl`."""
    return {name: result[name] for name in RESULT_KEYS}
