"""`llmtasks maintenance`."""

from __future__ import annotations

import click

from llmtasks.cli.output import json_option, print_json
from llmtasks.settings import current
from llmtasks.store import retention
from llmtasks.store.process import database
from llmtasks.store.retention import Removed


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count what would be removed now.")
@json_option
def maintenance(*, dry_run: bool, as_json: bool) -> None:
    """Remove now what is older than [retention] keeps it.

    Workers do the same by themselves, a little at a time.
    """
    db, keep = database(), current().retention
    found = retention.due(db, keep) if dry_run else sum(retention.tidy(db, keep), Removed())
    counts = found.counts()
    if as_json:
        print_json({"dry_run": dry_run, **counts})
        return
    lines = [
        f"{what}: {count:,}{' would be removed' if dry_run else ' removed'}"
        for what, count in counts.items()
        if count
    ]
    print("\n".join(lines) or "there is nothing to remove")
