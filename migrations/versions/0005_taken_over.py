"""How often the jobs of a batch lost their worker is counted without reading all of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    crashed = sa.text("batch_id IS NOT NULL AND crashes > 0")
    op.create_index(
        "ix_jobs_crashed",
        "jobs",
        ["batch_id", "crashes"],
        sqlite_where=crashed,
        postgresql_where=crashed,
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_crashed", "jobs")
