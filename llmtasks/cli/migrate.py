"""`llmtasks migrate`."""

from __future__ import annotations

import click

from llmtasks.cli.output import json_option, print_json
from llmtasks.settings import current
from llmtasks.store import schema
from llmtasks.store.engine import database_url


@click.command()
@json_option
def migrate(*, as_json: bool) -> None:
    """Bring the database to this version's schema. Doing it twice changes nothing."""
    url = database_url(current())
    before = schema.current(url)
    schema.upgrade(url)
    if as_json:
        print_json({"from": before, "to": schema.HEAD})
    elif before == schema.HEAD:
        print(f"the schema is up to date ({schema.HEAD})")
    else:
        print(f"migrated from {before or 'nothing'} to {schema.HEAD}")
