"""`llmtasks submit TASK (ID... | --ids-from FILE|- | --all)`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import click

from llmtasks import client
from llmtasks.cli.options import checked_options, deadline_option, task_options, to_option
from llmtasks.cli.output import counted, json_option, print_json, tenant_option
from llmtasks.errors import UsageError


@click.command()
@click.argument("task_type", metavar="TASK")
@click.argument("ids", nargs=-1)
@click.option(
    "--ids-from",
    type=click.File("rb"),
    help="A file with one document id a line, each becomes a job; - is stdin.",
)
@click.option("--all", "every", is_flag=True, help="All stored documents.")
@to_option
@task_options
@click.option("--priority", type=click.IntRange(0, 9), default=0, show_default=True)
@click.option("--fresh", is_flag=True, help="Ask again, although the answer is stored.")
@click.option("--stream", is_flag=True, help="Answers can be watched while they are written.")
@deadline_option
@tenant_option
@json_option
def submit(
    task_type: str,
    ids: tuple[str, ...],
    ids_from: BinaryIO | None,
    to: str | None,
    options: tuple[str, ...],
    priority: int,
    deadline: float | None,
    tenant: str,
    *,
    every: bool,
    fresh: bool,
    stream: bool,
    as_json: bool,
) -> None:
    """Submit one job per document; prints the batch's id.

    For example: llmtasks submit translate --all --to es
    """
    chosen = _chosen(ids, ids_from, tenant, every=every)
    batch = client.submit_batch(
        chosen,
        task_type,
        tenant=tenant,
        priority=priority,
        fresh=fresh,
        stream=stream,
        deadline_s=deadline,
        **checked_options(task_type, options, to),
    )
    if as_json:
        print_json({"batch_id": batch.batch_id, "jobs": batch.jobs})
    else:
        print(batch.batch_id)
        said = f"{counted(batch.jobs, 'job')}; see: llmtasks watch {batch.batch_id}"
        print(said, file=sys.stderr)


def _chosen(
    ids: tuple[str, ...], ids_from: BinaryIO | None, tenant: str, *, every: bool
) -> Iterable[str]:
    if sum((bool(ids), ids_from is not None, every)) != 1:
        raise UsageError("give document ids, or --ids-from, or --all")
    if every:
        return client.document_ids(tenant)
    if ids_from is not None:
        return _lines(ids_from)
    return ids


def _lines(file: BinaryIO) -> Iterator[str]:
    """The ids of a file: UTF-8, with or without a byte order mark; blank lines are none."""
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"--ids-from: line {number} is not UTF-8 (byte {error.start + 1} of it);"
                " nothing was submitted"
            ) from None
        if stripped := text.strip():
            yield stripped
