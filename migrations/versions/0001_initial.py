"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = (
    "results",
    "provider_calls",
    "documents",
    "workers",
    "queues",
    "jobs",
    "contents",
    "batches",
)


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String(length=255), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("task_type", sa.String(length=64), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("cancelled_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batches")),
    )
    op.create_table(
        "contents",
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("content_hash", sa.String(length=128), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "content_hash", name=op.f("pk_contents")),
    )
    op.create_table(
        "jobs",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("batch_id", sa.String(length=255), nullable=True),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("document_id", sa.String(length=512), nullable=False),
        sa.Column("document_hash", sa.String(length=128), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("fresh", sa.Boolean(), nullable=False),
        sa.Column("direct", sa.Boolean(), nullable=False),
        sa.Column("canvas", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("deferrals", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=255), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error_type", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=True),
        sa.Column("claimed_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_jobs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_jobs_job_id")),
    )
    _index("ix_jobs_batch", "jobs", ["batch_id", "seq"], where="batch_id IS NOT NULL")
    _index("ix_jobs_batch_state", "jobs", ["batch_id", "state"], where="batch_id IS NOT NULL")
    _index("ix_jobs_document", "jobs", ["tenant", "document_id"])
    _index("ix_jobs_due", "jobs", ["not_before"], where="state = 'waiting'")
    _index("ix_jobs_ended", "jobs", ["worker_id", "finished_at"], where="finished_at IS NOT NULL")
    _index(
        "ix_jobs_feed",
        "jobs",
        ["task_type", "priority", "tenant", "created_at", "seq"],
        where="state = 'queued' AND sent_at IS NULL",
    )
    _index(
        "ix_jobs_finished",
        "jobs",
        ["task_type", "finished_at"],
        where="state IN ('completed', 'failed')",
    )
    _index(
        "ix_jobs_untold",
        "jobs",
        ["task_type"],
        where="state IN ('completed', 'failed', 'cancelled') AND sent_at IS NULL",
    )
    _index("ix_jobs_running", "jobs", ["worker_id"], where="state = 'running'")
    _index(
        "ix_jobs_sent",
        "jobs",
        ["task_type", "sent_at"],
        where="state = 'queued' AND sent_at IS NOT NULL",
    )
    op.create_table(
        "queues",
        sa.Column("task_type", sa.String(length=64), nullable=False),
        sa.Column("fed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task_type", name=op.f("pk_queues")),
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.String(length=255), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("metrics_url", sa.Text(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("lease_s", sa.Double(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("pk_workers")),
    )
    op.create_table(
        "documents",
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("document_id", sa.String(length=512), nullable=False),
        sa.Column("content_hash", sa.String(length=128), nullable=False),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "content_hash"],
            ["contents.tenant", "contents.content_hash"],
            name=op.f("fk_documents_contents"),
        ),
        sa.PrimaryKeyConstraint("tenant", "document_id", name=op.f("pk_documents")),
    )
    op.create_table(
        "provider_calls",
        sa.Column("call_id", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("batch_id", sa.String(length=255), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("answer_key", sa.String(length=255), nullable=True),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cached_input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cost_usd", sa.Double(), nullable=True),
        sa.Column("latency_s", sa.Double(), nullable=False),
        sa.Column("outcome", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("answer", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_provider_calls_jobs")),
        sa.PrimaryKeyConstraint("call_id", name=op.f("pk_provider_calls")),
    )
    _index(
        "ix_calls_batch",
        "provider_calls",
        ["batch_id", "input_tokens", "output_tokens", "cost_usd"],
        where="batch_id IS NOT NULL",
    )
    _index("ix_calls_job", "provider_calls", ["job_id"])
    _index("ix_calls_kept", "provider_calls", ["created_at"], where="answer IS NOT NULL")
    op.create_table(
        "results",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("batch_id", sa.String(length=255), nullable=True),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("answer_key", sa.String(length=255), nullable=True),
        sa.Column("output", sa.JSON(), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("prompt_hash", sa.String(length=128), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Double(), nullable=True),
        sa.Column("cached", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_results_jobs")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_results")),
    )
    _index(
        "ix_results_answer",
        "results",
        ["tenant", "answer_key", "created_at"],
        where="answer_key IS NOT NULL",
    )
    _index("ix_results_batch", "results", ["batch_id", "cached"], where="batch_id IS NOT NULL")


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)


def _index(name: str, table: str, columns: list[str], where: str | None = None) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
