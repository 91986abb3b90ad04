"""`llmtasks targets`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click

from llmtasks import watching
from llmtasks.errors import StoreUnavailable, UsageError


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write them there, for file_sd_configs.",
)
@click.option(
    "--every",
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="Keep the file up to date until stopped.",
)
def targets(*, out: Path | None, every: float | None) -> None:
    """Where Prometheus finds the metrics of every live worker process.

    As JSON in the form of its service discovery. Workers that listen on the loopback of another host than
    this one are left out.
    """
    if out is None:
        if every is not None:
            raise UsageError("--every keeps a file up to date; say which: --out FILE")
        print(_json(), end="")
        return
    _write(out, _json())
    while every is not None:
        time.sleep(every)
        try:
            _write(out, _json())
        except StoreUnavailable as error:  # what was known last is better than nothing
            print(f"llmtasks: the database does not answer: {error}", file=sys.stderr, flush=True)


def _json() -> str:
    return json.dumps(watching.metrics_targets(), indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    """As a whole, and only when it has changed: Prometheus reads the file whenever it is written."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
