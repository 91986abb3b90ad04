"""Results: what a job gave, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Select
from sqlalchemy.engine import Connection, Row

from llmtasks.jobs import JobState
from llmtasks.messages import Usage
from llmtasks.store.engine import Database
from llmtasks.store.names import is_storable
from llmtasks.store.spending import Spent, spent_by
from llmtasks.store.tables import jobs, results

#: Rows read at once.
PAGE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewResult:
    """What a job gave. `output` is any JSON value, without NaN.

    `answer_key` names the question for later jobs, None when the answer is not to be given to them;
    `cost_usd` None is unknown; `cached` says that this job paid for no call; `seconds` is the last
    call's latency.
    """

    answer_key: str | None
    output: Any
    provider: str | None
    model: str | None
    prompt_hash: str | None
    usage: Usage
    cost_usd: float | None
    cached: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(NewResult):
    """A stored result."""

    job_id: str
    tenant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One job with its result, or with its error, or with neither yet.

    Without a result `usage` and `seconds` are 0 and the cost is unknown: what was paid for jobs that
    failed is in the status of their batch.
    """

    job_id: str
    batch_id: str | None
    tenant: str
    document_id: str
    task_type: str
    state: JobState
    output: Any
    error_type: str | None
    error_message: str | None
    provider: str | None
    model: str | None
    usage: Usage
    cost_usd: float | None
    cached: bool
    seconds: float


def columns_of(result: NewResult) -> dict[str, Any]:
    """A result as the columns of its row."""
    return {
        "answer_key": result.answer_key,
        "output": result.output,
        "provider": result.provider,
        "model": result.model,
        "prompt_hash": result.prompt_hash,
        "input_tokens": result.usage.input_tokens,
        "output_tokens": result.usage.output_tokens,
        "cached_input_tokens": result.usage.cached_input_tokens,
        "cost_usd": result.cost_usd,
        "cached": result.cached,
        "seconds": result.seconds,
    }


def get(db: Database, job_id: str) -> Result | None:
    """The result of a job; None while it has none."""
    return _one(db, _OF_JOB, {"of_job": job_id})


def find(db: Database, tenant: str, answer_key: str) -> Result | None:
    """The newest stored answer to this question; None when it was not answered yet."""
    return _one(db, _NEWEST_ANSWER, {"of_tenant": tenant, "of_key": answer_key})


def answered(db: Database, tenant: str, answer_keys: Sequence[str]) -> set[str]:
    """Those of the questions that have a stored answer."""
    found: set[str] = set()
    with db.read() as connection:
        for start in range(0, len(answer_keys), PAGE):
            page = answer_keys[start : start + PAGE]
            found.update(
                connection.execute(
                    sa.select(results.c.answer_key)
                    .where(results.c.tenant == tenant, results.c.answer_key.in_(page))
                    .distinct()
                ).scalars()
            )
    return found


def rows(
    db: Database,
    batch_id: str | None = None,
    document_id: str | None = None,
    tenant: str = "default",
    job_id: str | None = None,
) -> Iterator[ResultRow]:
    """One row per job of a batch, of a tenant's document, or of one job, in arrival order.

    Pages are read as they are needed, each from its own moment.
    """
    if batch_id is not None:
        name, which = batch_id, jobs.c.batch_id == batch_id
    elif job_id is not None:
        name, which = job_id, jobs.c.job_id == job_id
    elif document_id is not None:
        name = tenant + document_id
        which = sa.and_(jobs.c.tenant == tenant, jobs.c.document_id == document_id)
    else:
        raise ValueError("name a batch, a job or a document")
    return _pages(db, which) if is_storable(name) else iter(())


def of_jobs(db: Database, job_ids: Sequence[str]) -> dict[str, ResultRow]:
    """The rows of these jobs, as they are now. At most PAGE ids at once."""
    with db.read() as connection:
        found = connection.execute(_ROWS.where(jobs.c.job_id.in_(job_ids))).all()
        priced = _priced(connection, found)
    return {row.job_id: row for row in priced}


#: Made once, because every job looks for an answer.
_OF_JOB = sa.select(results).where(results.c.job_id == sa.bindparam("of_job"))
_NEWEST_ANSWER = (
    sa.select(results)
    .where(
        results.c.tenant == sa.bindparam("of_tenant"),
        results.c.answer_key == sa.bindparam("of_key"),
    )
    .order_by(results.c.created_at.desc())
    .limit(1)
)


def _one(db: Database, query: Select[Any], of: Mapping[str, str]) -> Result | None:
    if not all(map(is_storable, of.values())):
        return None
    with db.read() as connection:
        row = connection.execute(query, of).one_or_none()
    return None if row is None else _result(row)


def _result(row: Row[Any]) -> Result:
    return Result(
        job_id=row.job_id,
        tenant=row.tenant,
        answer_key=row.answer_key,
        output=row.output,
        provider=row.provider,
        model=row.model,
        prompt_hash=row.prompt_hash,
        usage=_usage(row),
        cost_usd=row.cost_usd,
        cached=row.cached,
        seconds=row.seconds,
    )


#: What a ResultRow is made of.
_ROWS = sa.select(
    jobs.c.seq,
    jobs.c.job_id,
    jobs.c.batch_id,
    jobs.c.tenant,
    jobs.c.document_id,
    jobs.c.task_type,
    jobs.c.state,
    jobs.c.error_type,
    jobs.c.error_message,
    results.c.output,
    results.c.provider,
    results.c.model,
    results.c.input_tokens,
    results.c.output_tokens,
    results.c.cached_input_tokens,
    results.c.cost_usd,
    results.c.cached,
    results.c.seconds,
    results.c.job_id,
).join_from(jobs, results, jobs.c.job_id == results.c.job_id, isouter=True)


def _pages(db: Database, which: ColumnElement[bool]) -> Iterator[ResultRow]:
    query = _ROWS.where(which, jobs.c.seq > sa.bindparam("after")).order_by(jobs.c.seq).limit(PAGE)
    after = 0
    while True:
        with db.read() as connection:
            page = connection.execute(query, {"after": after}).all()
            priced = _priced(connection, page)
        yield from priced
        if len(page) < PAGE:
            return
        after = page[-1].seq


def _priced(connection: Connection, found: Sequence[Row[*tuple[Any, ...]]]) -> list[ResultRow]:
    """The rows, those of failed jobs with what was paid for them."""
    failed = [row.job_id for row in found if row.state == JobState.FAILED]
    spent = spent_by(connection, failed)
    return [
        _failed_row(row, spent) if row.state == JobState.FAILED else _result_row(row)
        for row in found
    ]


def _failed_row(row: Row[*tuple[Any, ...]], spent: Mapping[str, Spent]) -> ResultRow:
    """A failed job has no result, and may have been paid for all the same."""
    paid = spent.get(row.job_id, Spent())
    return replace(
        _result_row(row),
        provider=paid.provider,
        model=paid.model,
        usage=paid.usage,
        cost_usd=paid.cost_usd,
    )


def _result_row(row: Row[*tuple[Any, ...]]) -> ResultRow:
    return ResultRow(
        job_id=row.job_id,
        batch_id=row.batch_id,
        tenant=row.tenant,
        document_id=row.document_id,
        task_type=row.task_type,
        state=JobState(row.state),
        output=row.output,
        error_type=row.error_type,
        error_message=row.error_message,
        provider=row.provider,
        model=row.model,
        usage=_usage(row),
        cost_usd=row.cost_usd,
        cached=bool(row.cached),
        seconds=row.seconds or 0.0,
    )


def _usage(row: Row[*tuple[Any, ...]]) -> Usage:
    return Usage(
        input_tokens=row.input_tokens or 0,
        output_tokens=row.output_tokens or 0,
        cached_input_tokens=row.cached_input_tokens or 0,
    )
