"""`llmtasks status | results | retry | cancel BATCH`; a job's id does as well."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable

import click

from llmtasks import client
from llmtasks.cli.output import (
    json_option,
    print_json,
    result_cells,
    result_json,
    status_json,
    status_lines,
)
from llmtasks.jobs import JobState


@click.command()
@click.argument("batch")
@json_option
def status(batch: str, *, as_json: bool) -> int:
    """Where a batch, a Celery group or a job stands. Exit code 1 when some of its jobs failed."""
    found = client.status(batch)
    if as_json:
        print_json(status_json(found))
    else:
        print("\n".join(status_lines(found)))
    return 1 if found.failed else 0


@click.command()
@click.argument("batch")
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True
)
@click.option("--json", "_as_json", is_flag=True, help="The same as --format jsonl.")
def results(batch: str, form: str, *, _as_json: bool) -> int:
    """One line per job, in the order of submission. Exit code 1 when some of the jobs failed."""
    rows = client.results(batch_id=batch)
    failed = _csv(rows) if form == "csv" and not _as_json else _jsonl(rows)
    return 1 if failed else 0


@click.command()
@click.argument("batch")
@json_option
def retry(batch: str, *, as_json: bool) -> None:
    """Queue the failed and cancelled jobs again; completed ones stay as they are."""
    count = client.retry(batch)
    if as_json:
        print_json({"batch_id": batch, "jobs": count})
    else:
        print(f"{count} jobs queued again")


@click.command()
@click.argument("batch")
@json_option
def cancel(batch: str, *, as_json: bool) -> None:
    """Cancel what has not ended: queued jobs at once, running ones at their next step."""
    count = client.cancel(batch)
    if as_json:
        print_json({"batch_id": batch, "jobs": count})
    else:
        print(f"{count} jobs cancelled")


def _jsonl(rows: Iterable[client.JobResult]) -> int:
    failed = 0
    for row in rows:
        failed += row.state == JobState.FAILED
        print_json(result_json(row))
    return failed


def _csv(rows: Iterable[client.JobResult]) -> int:
    failed = 0
    writer = None
    for row in rows:
        failed += row.state == JobState.FAILED
        cells = result_cells(row)
        if writer is None:
            writer = csv.DictWriter(sys.stdout, fieldnames=list(cells))
            writer.writeheader()
        writer.writerow(cells)
    return failed
