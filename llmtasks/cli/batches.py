"""`llmtasks status | results | retry | cancel BATCH`; a job's id does as well."""

from __future__ import annotations

from pathlib import Path

import click

from llmtasks import client
from llmtasks.cli import export
from llmtasks.cli.output import (
    counted,
    exit_code,
    json_option,
    print_json,
    status_json,
    status_lines,
)


@click.command()
@click.argument("batch")
@json_option
def status(batch: str, *, as_json: bool) -> int:
    """Where a batch, a Celery group or a job stands.

    Exit code 1 when some of its jobs failed or were cancelled.
    """
    found = client.status(batch)
    if as_json:
        print_json(status_json(found))
    else:
        print("\n".join(status_lines(found)))
    return exit_code(found)


@click.command()
@click.argument("batch")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(export.FORMS)),
    help="Default: by the suffix of --out, else jsonl.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="A file, which appears when it is whole; - is standard output.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
def results(batch: str, form: str | None, out: Path | None, *, as_json: bool) -> int:
    """One line per job, in the order of submission. Exit code 1 when some of the jobs failed.

    Parquet needs llmtasks[parquet].
    """
    file = None if out == Path("-") else out
    chosen = export.form_of(file, "jsonl" if as_json else form)
    failed = export.export(client.results(batch_id=batch), chosen, file)
    return 1 if failed else 0


@click.command()
@click.argument("batch")
@click.option("--failed", is_flag=True, help="The failed ones only.")
@json_option
def retry(batch: str, *, failed: bool, as_json: bool) -> None:
    """Queue the failed and cancelled jobs again; completed ones stay as they are."""
    count = client.retry(batch, failed_only=failed)
    if as_json:
        print_json({"batch_id": batch, "jobs": count})
    else:
        print(f"{counted(count, 'job')} queued again")


@click.command()
@click.argument("batch")
@json_option
def cancel(batch: str, *, as_json: bool) -> None:
    """Cancel what has not ended: queued jobs at once, running ones at their next step."""
    count = client.cancel(batch)
    if as_json:
        print_json({"batch_id": batch, "jobs": count})
    else:
        print(f"{counted(count, 'job')} cancelled")
