"""Reading many rows a page at a time, each page by a statement of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Select

from llmtasks.store.engine import Database


def pages(
    db: Database, query: Select[Any], order: tuple[ColumnElement[Any], ...], size: int
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a query, which begin with `order`, at most `size` at once.

    Nothing is held between two pages, and a row that stays as it is does not come again.
    """
    page = query.order_by(*order).limit(size)
    while True:
        with db.read() as connection:
            rows = [tuple(row) for row in connection.execute(page)]
        if rows:
            yield rows
        if len(rows) < size:
            return
        last = sa.tuple_(*map(sa.literal, rows[-1][: len(order)]))
        page = query.where(sa.tuple_(*order) > last).order_by(*order).limit(size)
