"""`llmtasks watch [BATCH]`: the progress of what was submitted before."""

from __future__ import annotations

import sys

import click

from llmtasks import watching
from llmtasks.cli import INTERRUPTED
from llmtasks.cli.output import (
    duration,
    exit_code,
    json_option,
    print_json,
    status_json,
    status_lines,
)
from llmtasks.cli.progress import follow, sights
from llmtasks.store.batches import BatchStatus


@click.command()
@click.argument("batch", required=False)
@json_option
def watch(batch: str | None, *, as_json: bool) -> int:
    """Follow a batch, a Celery group or a job until it has ended; without BATCH the newest one.

    Exit code 0 when all was completed, 1 when some failed or was cancelled. Ctrl-C ends the watching,
    not the work. --json prints one line per change.
    """
    found = batch or watching.newest_batch()
    if batch is None:
        print(f"watching the newest batch: {found}", file=sys.stderr)
    try:
        status = _json_lines(found) if as_json else follow(found)
    except KeyboardInterrupt:
        print(f"it goes on; come back with: llmtasks watch {found}", file=sys.stderr)
        return INTERRUPTED
    if not as_json:
        print("\n".join([*status_lines(status), _took(found)]))
    return exit_code(status)


def _json_lines(batch: str) -> BatchStatus:
    """Print the status whenever it has changed; the last one when it has ended."""
    shown: BatchStatus | None = None
    for sight in sights(batch):
        if sight.status != shown:
            shown = sight.status
            print_json(status_json(shown))
            sys.stdout.flush()
    return sight.status


def _took(batch: str) -> str:
    times = watching.times(batch)
    ended_at = times.now if times.ended_at is None else times.ended_at
    return f"  took    {duration(ended_at - times.submitted_at)} from submission to the last end"
