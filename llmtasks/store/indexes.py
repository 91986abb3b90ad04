"""The tables with their indexes, for whoever makes or compares them.

Apart from the tables, because a partial index makes SQLAlchemy load all of its PostgreSQL, a tenth of what a
command takes to start.
"""

from __future__ import annotations

from sqlalchemy import Column, ColumnElement, Index, and_

from llmtasks.store.tables import (
    CRASHED,
    FEEDABLE,
    FINISHED,
    PINNING,
    RUNNING,
    SENT,
    TIMED,
    UNTOLD,
    WAITING,
    batches,
    contents,
    documents,
    jobs,
    outbox,
    provider_calls,
    results,
)
from llmtasks.store.tables import metadata as metadata  # noqa: PLC0414  # with what is below


def _index(name: str, *columns: Column[object], where: ColumnElement[bool] | None = None) -> None:
    if where is None:
        Index(name, *columns)
    else:
        Index(name, *columns, sqlite_where=where, postgresql_where=where)


_j = jobs.c
_index("ix_jobs_batch", _j.batch_id, _j.seq, where=_j.batch_id.is_not(None))  # pages of a batch
_index("ix_jobs_batch_state", _j.batch_id, _j.state, where=_j.batch_id.is_not(None))  # its counts
_index("ix_jobs_crashed", _j.batch_id, _j.crashes, where=and_(_j.batch_id.is_not(None), CRASHED))
_index("ix_jobs_document", _j.tenant, _j.document_id)
# Arrival is (created_at, seq) here: with seq alone PostgreSQL at times walks the primary key
# instead, over every row that has already ended.
_index(
    "ix_jobs_feed",
    _j.task_type,
    _j.priority,
    _j.tenant,
    _j.created_at,
    _j.seq,
    where=FEEDABLE,
)
_index("ix_jobs_sent", _j.task_type, _j.sent_at, where=SENT)
_index("ix_jobs_untold", _j.task_type, where=UNTOLD)
_index("ix_jobs_due", _j.not_before, where=WAITING)
_index("ix_jobs_deadline", _j.deadline_at, where=TIMED)
_index("ix_jobs_running", _j.worker_id, where=RUNNING)
_index("ix_jobs_ended", _j.worker_id, _j.finished_at, where=_j.finished_at.is_not(None))
_index("ix_jobs_finished", _j.task_type, _j.finished_at, where=FINISHED)

_r = results.c
_index(
    "ix_results_answer",
    _r.tenant,
    _r.answer_key,
    _r.created_at,
    where=_r.answer_key.is_not(None),
)
_index("ix_results_batch", _r.batch_id, _r.cached, where=_r.batch_id.is_not(None))

_c = provider_calls.c
_index("ix_calls_job", _c.job_id)
_index(
    "ix_calls_batch",
    _c.batch_id,
    _c.input_tokens,
    _c.output_tokens,
    _c.cost_usd,
    where=_c.batch_id.is_not(None),
)
_index("ix_calls_kept", _c.created_at, where=_c.answer.is_not(None))
_index("ix_outbox_due", outbox.c.due_at)

# For what is removed by its age.
_index("ix_batches_created", batches.c.created_at, batches.c.batch_id)
_index(
    "ix_jobs_single_ended",
    _j.finished_at,
    _j.seq,
    where=and_(_j.batch_id.is_(None), _j.finished_at.is_not(None)),
)
_index("ix_jobs_pinning", _j.tenant, _j.document_hash, where=PINNING)
_index("ix_documents_content", documents.c.tenant, documents.c.content_hash)
_index(
    "ix_documents_updated",
    documents.c.updated_at,
    documents.c.tenant,
    documents.c.document_id,
)
_index(
    "ix_contents_replaced",
    contents.c.replaced_at,
    contents.c.tenant,
    contents.c.content_hash,
    where=contents.c.replaced_at.is_not(None),
)
