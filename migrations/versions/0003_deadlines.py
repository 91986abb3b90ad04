"""Until when a job may take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deadline_s", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("deadline_at", sa.Double(), nullable=True))
    timed = sa.text("state IN ('queued', 'running', 'waiting') AND deadline_at IS NOT NULL")
    op.create_index(
        "ix_jobs_deadline", "jobs", ["deadline_at"], sqlite_where=timed, postgresql_where=timed
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_deadline", "jobs")
    op.drop_column("jobs", "deadline_at")
    op.drop_column("jobs", "deadline_s")
