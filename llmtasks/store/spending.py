"""What jobs cost, summed over their calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from llmtasks.messages import Usage
from llmtasks.store.tables import provider_calls

_NOTHING = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What jobs cost over all their claims. `cost_usd` is None when that of one call is unknown.

    `provider` and `model` are None unless one alone was asked.
    """

    usage: Usage = _NOTHING
    cost_usd: float | None = 0.0
    provider: str | None = None
    model: str | None = None


def spent_by(connection: Connection, job_ids: Sequence[str]) -> dict[str, Spent]:
    """What each of these jobs cost that made a call. At most a page of them at once."""
    if not job_ids:
        return {}
    c = provider_calls.c
    query = (
        sa.select(
            c.job_id,
            sa.func.coalesce(sa.func.sum(c.input_tokens), 0).label("input"),
            sa.func.coalesce(sa.func.sum(c.output_tokens), 0).label("output"),
            sa.func.coalesce(sa.func.sum(c.cached_input_tokens), 0).label("cached"),
            sa.func.coalesce(sa.func.sum(c.cost_usd), 0.0).label("cost"),
            (sa.func.count() - sa.func.count(c.cost_usd)).label("unknown"),
            *(
                sa.case((sa.func.min(one) == sa.func.max(one), sa.func.min(one))).label(one.name)
                for one in (c.provider, c.model)
            ),
        )
        .where(c.job_id.in_(job_ids))
        .group_by(c.job_id)
    )
    return {row.job_id: _spent(row) for row in connection.execute(query)}


def _spent(row: Row[*tuple[Any, ...]]) -> Spent:
    return Spent(
        usage=Usage(
            input_tokens=int(row.input),
            output_tokens=int(row.output),
            cached_input_tokens=int(row.cached),
        ),
        cost_usd=None if row.unknown else float(row.cost),
        provider=row.provider,
        model=row.model,
    )
