"""The tables; their indexes are in `indexes`. All times are seconds since the epoch on the database's clock.

The conditions of the partial indexes have names here and are used by the queries as well: a planner
takes a partial index only for a condition it can prove, so states are literals in them, never
parameters.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    false,
    literal_column,
)

from llmtasks.jobs import JobState
from llmtasks.store.names import MAX_DOCUMENT_ID, MAX_HASH, MAX_ID, MAX_NAME, MAX_TENANT

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)

#: A JSON value whose absence is NULL, not the JSON `null`.
_JsonOrNull = JSON(none_as_null=True)
#: SQLite numbers only an INTEGER PRIMARY KEY by itself.
_Sequence = BigInteger().with_variant(Integer, "sqlite")

documents = Table(
    "documents",
    metadata,
    Column("tenant", String(MAX_TENANT), nullable=False),
    Column("document_id", String(MAX_DOCUMENT_ID), nullable=False),
    Column("content_hash", String(MAX_HASH), nullable=False),
    Column("path", Text),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    PrimaryKeyConstraint("tenant", "document_id"),
    ForeignKeyConstraint(["tenant", "content_hash"], ["contents.tenant", "contents.content_hash"]),
)

#: Addressed by content, so that a job keeps the text it was submitted with when its document
#: changes.
contents = Table(
    "contents",
    metadata,
    Column("tenant", String(MAX_TENANT), nullable=False),
    Column("content_hash", String(MAX_HASH), nullable=False),
    Column("text", Text, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes of UTF-8
    Column("replaced_at", Double),  # NULL: its documents still have it, as far as is known
    PrimaryKeyConstraint("tenant", "content_hash"),
)

batches = Table(
    "batches",
    metadata,
    Column("batch_id", String(MAX_ID), nullable=False),
    Column("tenant", String(MAX_TENANT), nullable=False),
    Column("task_type", String(MAX_NAME)),  # NULL: a group of several types
    Column("options", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("cancelled_at", Double),
    PrimaryKeyConstraint("batch_id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Sequence, autoincrement=True, nullable=False),  # arrival order
    Column("job_id", String(MAX_ID), nullable=False),
    Column("batch_id", String(MAX_ID)),
    Column("tenant", String(MAX_TENANT), nullable=False),
    Column("task_type", String(MAX_NAME), nullable=False),
    Column("document_id", String(MAX_DOCUMENT_ID), nullable=False),
    Column("document_hash", String(MAX_HASH)),  # NULL: there was no such document at submission
    Column("options", JSON, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("fresh", Boolean, nullable=False),
    Column("direct", Boolean, nullable=False),
    Column("canvas", _JsonOrNull),  # what Celery has to be told again when it is sent again
    Column("state", String(16), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("deferrals", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("worker_id", String(MAX_ID)),  # who runs it, or ran it last when it has ended
    Column("not_before", Double),
    Column("reason", Text),
    Column("error_type", String(MAX_NAME)),
    Column("error_message", Text),
    Column("created_at", Double, nullable=False),
    Column("sent_at", Double),  # NULL: the feeder has to hand it to the broker
    Column("claimed_at", Double),
    Column("finished_at", Double),
    Column("deadline_s", Double),  # seconds from submission or retry; NULL: any
    Column("deadline_at", Double),
    Column("stream", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("seq"),
    UniqueConstraint("job_id"),
)

results = Table(
    "results",
    metadata,
    Column("job_id", String(MAX_ID), nullable=False),
    Column("batch_id", String(MAX_ID)),
    Column("tenant", String(MAX_TENANT), nullable=False),
    Column("answer_key", String(MAX_ID)),  # NULL: not to be given to another job
    Column("output", JSON, nullable=False),
    Column("provider", String(MAX_NAME)),
    Column("model", Text),
    Column("prompt_hash", String(MAX_HASH)),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_input_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double),  # NULL: unknown
    Column("cached", Boolean, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    PrimaryKeyConstraint("job_id"),
    ForeignKeyConstraint(["job_id"], ["jobs.job_id"]),
)

provider_calls = Table(
    "provider_calls",
    metadata,
    Column("call_id", String(MAX_ID), nullable=False),
    Column("job_id", String(MAX_ID), nullable=False),
    Column("batch_id", String(MAX_ID)),
    Column("fence", Integer, nullable=False),
    Column("answer_key", String(MAX_ID)),
    Column("provider", String(MAX_NAME), nullable=False),
    Column("model", Text, nullable=False),
    Column("input_tokens", BigInteger),  # tokens NULL: the outcome is unknown
    Column("output_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    Column("cost_usd", Double),  # NULL: unknown
    Column("latency_s", Double, nullable=False),
    Column("outcome", String(MAX_NAME), nullable=False),
    Column("request_id", Text),
    Column("answer", _JsonOrNull),  # a string; as JSON, because models do say NUL
    Column("created_at", Double, nullable=False),
    PrimaryKeyConstraint("call_id"),
    ForeignKeyConstraint(["job_id"], ["jobs.job_id"]),
)

workers = Table(
    "workers",
    metadata,
    Column("worker_id", String(MAX_ID), nullable=False),
    Column("hostname", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("queues", JSON, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("metrics_url", Text),
    Column("started_at", Double, nullable=False),
    Column("lease_s", Double, nullable=False),
    Column("lease_until", Double, nullable=False),
    PrimaryKeyConstraint("worker_id"),
)

#: When each task type's batches were last fed to the broker.
queues = Table(
    "queues",
    metadata,
    Column("task_type", String(MAX_NAME), nullable=False),
    Column("fed_at", Double, nullable=False),
    PrimaryKeyConstraint("task_type"),
)

#: Batches that are gone for everybody, and whose jobs are still being removed.
removals = Table(
    "removals",
    metadata,
    Column("batch_id", String(MAX_ID), nullable=False),
    Column("started_at", Double, nullable=False),
    PrimaryKeyConstraint("batch_id"),
)

#: When somebody last took it on to do what one worker does for all.
turns = Table(
    "turns",
    metadata,
    Column("name", String(MAX_NAME), nullable=False),
    Column("taken_at", Double, nullable=False),
    PrimaryKeyConstraint("name"),
)

#: Ended jobs that are still to be delivered to the user's sink.
outbox = Table(
    "outbox",
    metadata,
    Column("job_id", String(MAX_ID), nullable=False),
    Column("due_at", Double, nullable=False),  # when it ended; later once the sink has failed
    Column("tries", Integer, nullable=False),  # that have failed
    Column("claimed_by", String(MAX_ID)),  # the worker process that delivers it
    Column("claimed_until", Double),
    PrimaryKeyConstraint("job_id"),
    ForeignKeyConstraint(["job_id"], ["jobs.job_id"]),
)


def in_state(*states: JobState) -> ColumnElement[bool]:
    """The job is in one of these states, written as literals."""
    literals = [literal_column(f"'{state.value}'", String) for state in states]
    return jobs.c.state == literals[0] if len(literals) == 1 else jobs.c.state.in_(literals)


QUEUED = in_state(JobState.QUEUED)
RUNNING = in_state(JobState.RUNNING)
WAITING = in_state(JobState.WAITING)
#: Ended by work, not by its user.
FINISHED = in_state(JobState.COMPLETED, JobState.FAILED)
#: Not ended.
OPEN = in_state(JobState.QUEUED, JobState.RUNNING, JobState.WAITING)
#: Not ended, and in nobody's hands.
UNCLAIMED = in_state(JobState.QUEUED, JobState.WAITING)
#: Ready to be handed to the broker.
FEEDABLE = and_(QUEUED, jobs.c.sent_at.is_(None))
ENDED = in_state(JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)
#: It needs its text, now or when it is retried.
PINNING = jobs.c.state != literal_column(f"'{JobState.COMPLETED.value}'", String)
#: Ended without a message under way: if it is direct, its caller may wait in `.get()` to be told.
UNTOLD = and_(ENDED, jobs.c.sent_at.is_(None))
#: Not ended, and with a time to end by.
TIMED = and_(OPEN, jobs.c.deadline_at.is_not(None))
#: Taken from a worker that died, once at least.
CRASHED = jobs.c.crashes > literal_column("0")
#: Handed to the broker, and not claimed yet.
SENT = and_(QUEUED, jobs.c.sent_at.is_not(None))
