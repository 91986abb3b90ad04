"""Calls of providers: what was paid, and the answers it bought."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Select
from sqlalchemy.engine import Connection

from llmtasks.jobs import ENDED
from llmtasks.messages import Usage
from llmtasks.store import dialect
from llmtasks.store.engine import Database, epoch
from llmtasks.store.jobs import ClaimedJob
from llmtasks.store.names import MAX_NAME, clean
from llmtasks.store.paging import pages
from llmtasks.store.spending import Spent, spent_by
from llmtasks.store.tables import in_state, jobs, provider_calls

#: The `outcome` of a call whose answer is whole.
OK = "ok"
_MINUTE_S = 60.0
#: Rows changed at once by housekeeping.
CHUNK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCall:
    """A call that was made. `usage` None: whether it was charged is unknown.

    `cost_usd` None is unknown; 0.0 for a call that surely cost nothing. `answer` is kept for a job
    that is resumed: only a whole one (`outcome` "ok") is given back to it.
    """

    call_id: str
    answer_key: str | None
    provider: str
    model: str
    usage: Usage | None
    cost_usd: float | None
    latency_s: float
    outcome: str
    request_id: str | None
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidAnswer:
    """A whole answer that was paid for by an earlier claim of the same job."""

    answer_key: str
    provider: str
    model: str
    usage: Usage
    cost_usd: float | None
    latency_s: float
    request_id: str | None
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a provider answered of late: over the whole look back, and over its last minute."""

    calls: int
    minute_calls: int
    minute_input_tokens: int
    minute_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """The whole answers of the last `seconds`, by provider. Calls that failed are not among them."""

    seconds: float
    by_provider: Mapping[str, Answered]


def record(db: Database, job: ClaimedJob, calls: Sequence[NewCall]) -> None:
    """Commit what was paid, whoever holds the job by now. A call recorded again changes nothing."""
    if not calls:
        return
    of_job = {"job_id": job.job_id, "batch_id": job.batch_id, "fence": job.fence}
    rows = [of_job | _row(call) for call in calls]

    def write(connection: Connection) -> None:
        connection.execute(_recorded(connection.dialect.name), rows)

    db.together(write)


@functools.cache
def _recorded(dialect_name: str) -> dialect.Insert:
    """Made once, because every job has calls to record."""
    return (
        dialect.insert_for(dialect_name, provider_calls)
        .values(created_at=epoch())
        .on_conflict_do_nothing(index_elements=[provider_calls.c.call_id])
    )


def answers(db: Database, job_id: str) -> dict[str, PaidAnswer]:
    """The whole answers this job paid for already, by the key of their question."""
    columns = provider_calls.c
    with db.read() as connection:
        rows = connection.execute(
            sa.select(provider_calls)
            .where(
                columns.job_id == job_id,
                columns.outcome == OK,
                columns.answer.is_not(None),
                columns.answer_key.is_not(None),
            )
            .order_by(columns.created_at)
        ).all()
    return {
        row.answer_key: PaidAnswer(
            answer_key=row.answer_key,
            provider=row.provider,
            model=row.model,
            usage=Usage(
                input_tokens=row.input_tokens or 0,
                output_tokens=row.output_tokens or 0,
                cached_input_tokens=row.cached_input_tokens or 0,
            ),
            cost_usd=row.cost_usd,
            latency_s=row.latency_s,
            request_id=row.request_id,
            answer=row.answer,
        )
        for row in rows
    }


def spent(db: Database, job_id: str) -> tuple[Usage, float | None]:
    """Tokens and dollars of a job over all its claims; None when a call's dollars are unknown."""
    with db.read() as connection:
        found = spent_by(connection, [job_id]).get(job_id, Spent())
    return found.usage, found.cost_usd


def recent(db: Database, back_s: float, limit: int) -> Recent:
    """Whole answers by provider, `back_s` seconds back, or over less when that are the newest `limit`."""
    columns = provider_calls.c
    answered = (
        sa.select(columns.provider, columns.created_at, columns.input_tokens, columns.output_tokens)
        .where(columns.answer.is_not(None), columns.created_at > epoch() - back_s)
        .order_by(columns.created_at.desc())
        .limit(limit)
        .subquery()
    )
    a = answered.c
    fresh = a.created_at > epoch() - _MINUTE_S
    with db.read() as connection:
        rows = connection.execute(
            sa.select(
                a.provider,
                sa.func.count().label("calls"),
                sa.func.coalesce(sa.func.sum(sa.case((fresh, 1), else_=0)), 0).label("minute"),
                sa.func.coalesce(sa.func.sum(sa.case((fresh, a.input_tokens))), 0).label("input"),
                sa.func.coalesce(sa.func.sum(sa.case((fresh, a.output_tokens))), 0).label("output"),
                (epoch() - sa.func.min(a.created_at)).label("oldest_s"),
            ).group_by(a.provider)
        ).all()
    full = sum(row.calls for row in rows) >= limit
    return Recent(
        seconds=max(row.oldest_s for row in rows) if full else back_s,
        by_provider={
            row.provider: Answered(
                calls=row.calls,
                minute_calls=int(row.minute),
                minute_input_tokens=int(row.input),
                minute_output_tokens=int(row.output),
            )
            for row in rows
        },
    )


#: Nobody resumes with the answers of an ended job.
_ENDED = sa.exists().where(jobs.c.job_id == provider_calls.c.job_id, in_state(*sorted(ENDED)))


def forgettable(older_than_s: float) -> Select[tuple[float, str]]:
    """The calls of ended jobs whose answers are older than so many seconds."""
    return _answered(older_than_s).where(_ENDED)


def forget_answers(db: Database, older_than_s: float) -> Iterator[int]:
    """Drop the answers of `forgettable` calls; how many, per transaction. Their numbers stay."""
    order = (provider_calls.c.created_at, provider_calls.c.call_id)
    for page in pages(db, _answered(older_than_s), order, CHUNK):
        with db.write() as connection:
            forgotten = connection.execute(
                sa.update(provider_calls)
                .where(provider_calls.c.call_id.in_([call_id for _, call_id in page]), _ENDED)
                .values(answer=sa.null())
                .returning(provider_calls.c.call_id)
            ).all()
        yield len(forgotten)


def _answered(older_than_s: float) -> Select[tuple[float, str]]:
    return sa.select(provider_calls.c.created_at, provider_calls.c.call_id).where(
        provider_calls.c.answer.is_not(None), provider_calls.c.created_at < epoch() - older_than_s
    )


def _row(call: NewCall) -> dict[str, object]:
    usage = call.usage
    keep = call.answer is not None and call.outcome == OK
    return {
        "call_id": call.call_id,
        "answer_key": call.answer_key,
        "provider": call.provider,
        "model": call.model,
        "input_tokens": usage and usage.input_tokens,
        "output_tokens": usage and usage.output_tokens,
        "cached_input_tokens": usage and usage.cached_input_tokens,
        "cost_usd": call.cost_usd,
        "latency_s": call.latency_s,
        "outcome": clean(call.outcome, MAX_NAME),
        "request_id": None if call.request_id is None else clean(call.request_id),
        "answer": call.answer if keep else None,
    }
