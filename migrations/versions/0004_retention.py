"""What is removed by its age: texts that were replaced, batches that are going, and the ways to find them."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_batches_created": ("batches", ["created_at", "batch_id"], None),
    "ix_jobs_single_ended": (
        "jobs",
        ["finished_at", "seq"],
        "batch_id IS NULL AND finished_at IS NOT NULL",
    ),
    "ix_jobs_pinning": ("jobs", ["tenant", "document_hash"], "state != 'completed'"),
    "ix_documents_content": ("documents", ["tenant", "content_hash"], None),
    "ix_documents_updated": ("documents", ["updated_at", "tenant", "document_id"], None),
    "ix_contents_replaced": (
        "contents",
        ["replaced_at", "tenant", "content_hash"],
        "replaced_at IS NOT NULL",
    ),
}


def upgrade() -> None:
    op.create_table(
        "removals",
        sa.Column("batch_id", sa.String(length=255), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_removals")),
    )
    op.create_table(
        "turns",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_turns")),
    )
    op.add_column("contents", sa.Column("replaced_at", sa.Double(), nullable=True))
    for name, (table, columns, where) in _INDEXES.items():
        condition = None if where is None else sa.text(where)
        op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
    # When the texts that no document has were replaced nobody knows: their time begins now.
    op.execute(
        sa.text(
            "UPDATE contents SET replaced_at = :now WHERE NOT EXISTS (SELECT 1 FROM documents"
            " WHERE documents.tenant = contents.tenant"
            " AND documents.content_hash = contents.content_hash)"
        ).bindparams(now=time.time())
    )


def downgrade() -> None:
    for name, (table, _, _) in reversed(_INDEXES.items()):
        op.drop_index(name, table)
    op.execute("ALTER TABLE contents DROP COLUMN replaced_at")
    op.drop_table("turns")
    op.drop_table("removals")
