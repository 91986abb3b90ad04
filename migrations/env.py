"""Run by Alembic, on the connection and inside the transaction of `llmtasks.store.schema`."""

from __future__ import annotations

from alembic import context

from llmtasks.store.indexes import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
context.run_migrations()
