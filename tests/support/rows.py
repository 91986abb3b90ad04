"""Rows for tests of the store, with everything that does not matter filled in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import sqlalchemy as sa

from llmtasks.jobs import NewJob
from llmtasks.messages import Usage
from llmtasks.store import jobs, workers
from llmtasks.store.calls import NewCall
from llmtasks.store.documents import NewDocument
from llmtasks.store.engine import Database
from llmtasks.store.jobs import ClaimedJob
from llmtasks.store.results import NewResult
from llmtasks.store.tables import jobs as jobs_table

T = TypeVar("T")


def new_job(job_id: str = "job", **values: Any) -> NewJob:
    return NewJob(job_id=job_id, **{"document_id": "doc", "task_type": "summarize", **values})


def new_document(document_id: str = "doc", text: str = "a text", **values: Any) -> NewDocument:
    return NewDocument(
        document_id=document_id, text=text, **{"content_hash": f"hash of {text}"[:64], **values}
    )


def new_result(**values: Any) -> NewResult:
    defaults: dict[str, Any] = {
        "answer_key": "key",
        "output": {"summary": "short"},
        "provider": "openai",
        "model": "gpt",
        "prompt_hash": "prompt",
        "usage": Usage(input_tokens=10, output_tokens=2, cached_input_tokens=1),
        "cost_usd": 0.5,
        "cached": False,
        "seconds": 1.5,
    }
    return NewResult(**(defaults | values))


def new_call(call_id: str = "call", **values: Any) -> NewCall:
    defaults: dict[str, Any] = {
        "answer_key": "key",
        "provider": "openai",
        "model": "gpt",
        "usage": Usage(input_tokens=10, output_tokens=2, cached_input_tokens=1),
        "cost_usd": 0.25,
        "latency_s": 0.5,
        "outcome": "ok",
        "request_id": "request",
        "answer": "an answer",
    }
    return NewCall(call_id=call_id, **(defaults | values))


def claimed(
    db: Database, job_id: str = "job", worker_id: str = "worker", **values: Any
) -> ClaimedJob:
    """A job that was inserted and claimed."""
    jobs.insert(db, [new_job(job_id, **values)], sent=True)
    job = jobs.claim(db, job_id, worker_id)
    assert job is not None
    return job


def register(db: Database, worker_id: str = "worker", lease_s: float = 60.0) -> None:
    workers.register(db, worker_id, "host", 1, ["llm.summarize"], 4, None, lease_s)


def change(db: Database, job_id: str, **values: Any) -> None:
    """Set columns of a job's row: what time or an accident would have done."""
    with db.write() as connection:
        connection.execute(
            sa.update(jobs_table).where(jobs_table.c.job_id == job_id).values(**values)
        )


def column(db: Database, job_id: str, name: str) -> Any:
    with db.read() as connection:
        return connection.execute(
            sa.select(jobs_table.c[name]).where(jobs_table.c.job_id == job_id)
        ).scalar_one()


def at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Do all of them at the same moment, each on a thread of its own; their values in order."""
    barrier = Barrier(len(actions))

    def run(action: Callable[[], T]) -> T:
        barrier.wait(10)
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))
