"""`llmtasks submit TASK (ID... | --ids-from FILE|- | --all)`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import click

from llmtasks import client
from llmtasks.cli.output import json_option, print_json, tenant_option
from llmtasks.errors import UsageError

#: Said in another way on the command line.
RESERVED = frozenset({"ids", "task_type", "batch_id", "tenant", "priority", "fresh"})


@click.command()
@click.argument("task_type", metavar="TASK")
@click.argument("ids", nargs=-1)
@click.option(
    "--ids-from", type=click.File("r"), help="A file with one document id a line; - is stdin."
)
@click.option("--all", "every", is_flag=True, help="All stored documents.")
@click.option(
    "-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="A task option."
)
@click.option("--priority", type=click.IntRange(0, 9), default=0, show_default=True)
@click.option("--fresh", is_flag=True, help="Ask again, although the answer is stored.")
@tenant_option
@json_option
def submit(
    task_type: str,
    ids: tuple[str, ...],
    ids_from: TextIO | None,
    options: tuple[str, ...],
    priority: int,
    tenant: str,
    *,
    every: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Submit one job per document; prints the batch's id.

    For example: llmtasks submit translate --all -o target_language=es
    """
    chosen = _chosen(ids, ids_from, tenant, every=every)
    batch = client.submit_batch(
        chosen,
        task_type,
        tenant=tenant,
        priority=priority,
        fresh=fresh,
        **dict(_option(text) for text in options),
    )
    if as_json:
        print_json({"batch_id": batch.batch_id, "jobs": batch.jobs})
    else:
        print(f"{batch.batch_id}  {batch.jobs} jobs; see: llmtasks status {batch.batch_id}")


def _chosen(
    ids: tuple[str, ...], ids_from: TextIO | None, tenant: str, *, every: bool
) -> Iterable[str]:
    if sum((bool(ids), ids_from is not None, every)) != 1:
        raise UsageError("give document ids, or --ids-from, or --all")
    if every:
        return client.document_ids(tenant)
    if ids_from is not None:
        return _lines(ids_from)
    return ids


def _lines(file: TextIO) -> Iterator[str]:
    for line in file:
        if stripped := line.strip():
            yield stripped


def _option(text: str) -> tuple[str, Any]:
    """`key=value`: the value is JSON where it is (50, true, ["person"]), else the text itself."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"-o takes key=value, not {text!r}")
    if key in RESERVED:
        raise UsageError(f"-o {key}: is no option of a task; see llmtasks submit --help")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
