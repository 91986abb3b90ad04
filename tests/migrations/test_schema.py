"""Migrations: from empty to what the tables say, on both databases."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from support.rows import at_once, new_result

from llmtasks.jobs import JobState
from llmtasks.store import jobs, outbox, schema
from llmtasks.store.engine import Database
from llmtasks.store.indexes import metadata

OF_AN_OLDER_VERSION = """
INSERT INTO jobs (job_id, tenant, task_type, document_id, options, priority, fresh, direct, state, fence,
    attempts, deferrals, crashes, worker_id, created_at, sent_at, finished_at)
SELECT name, 'default', 'summarize', 'doc', '{}', 0, false, true, name, 1, 1, 0, 0, 'worker', 1, 1, ended
FROM (SELECT 'completed' AS name, 2 AS ended UNION ALL SELECT 'running', NULL) AS old
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_urls(request, tmp_path):
    """Two empty databases."""
    if request.param == "sqlite":
        yield [f"sqlite:///{tmp_path / name}" for name in ("one", "two")]
        return
    server = request.getfixturevalue("postgres")
    with server.database(migrated=False) as one, server.database(migrated=False) as two:
        yield [one, two]


def described(url):
    """Every column, constraint and index of a database, as it describes them itself."""
    db = Database(url)
    with db.read() as connection:
        inspector = sa.inspect(connection)
        tables = {
            name: {
                "columns": [{**c, "type": repr(c["type"])} for c in inspector.get_columns(name)],
                "primary key": inspector.get_pk_constraint(name),
                "foreign keys": inspector.get_foreign_keys(name),
                "unique": inspector.get_unique_constraints(name),
            }
            for name in inspector.get_table_names()
            if name != "alembic_version"
        }
        if db.is_sqlite:
            query = "SELECT name, sql FROM sqlite_master WHERE type = 'index'"
        else:
            query = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        indexes = {
            name: definition
            for name, definition in connection.execute(sa.text(query))
            if not name.startswith(("alembic", "sqlite_autoindex"))
        }
    db.close()
    return tables, indexes


def test_the_newest_revision_is_the_one_the_code_works_on():
    scripts = ScriptDirectory(str(schema.script_location()))
    assert scripts.get_heads() == [schema.HEAD]
    numbers = [script.revision for script in scripts.walk_revisions()]
    assert numbers == sorted(numbers, reverse=True)


def test_upgrading_from_empty_gives_exactly_the_tables(empty_urls):
    migrated, created = empty_urls
    assert schema.current(migrated) is None
    schema.upgrade(migrated)
    assert schema.current(migrated) == schema.HEAD
    db = Database(created)
    with db.write() as connection:
        metadata.create_all(connection)
    db.close()
    assert described(migrated) == described(created)


def test_alembic_finds_nothing_left_to_migrate(database_url):
    db = Database(database_url)
    with db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    db.close()


def migrate(url, revision):
    """Bring an empty database to an older revision, as an older version left it."""
    from alembic import command
    from alembic.config import Config

    db = Database(url)
    config = Config()
    config.set_main_option("script_location", str(schema.script_location()))
    with db.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return db


def test_an_older_database_keeps_its_rows_and_gets_the_same_tables(empty_urls):
    old, new = empty_urls
    db = migrate(old, "0001")
    with db.write() as connection:
        connection.execute(sa.text(OF_AN_OLDER_VERSION))
    schema.upgrade(old)
    schema.upgrade(new)
    assert described(old) == described(new)
    assert jobs.get(db, "completed").state is JobState.COMPLETED
    # A worker of the older version ended that one: there was no sink.
    assert outbox.waiting(db).count == 0
    running = jobs.held(db, "worker", "running")
    assert running.deadline_s is None
    assert jobs.complete(db, running, new_result(), to_sink=True)
    assert [one.job_id for one in outbox.claim(db, "worker", 9, 30.0)] == ["running"]
    db.close()


def test_upgrading_twice_or_from_many_sides_at_once_is_harmless(empty_urls):
    url, _ = empty_urls
    at_once([lambda: schema.upgrade(url)] * 4)
    schema.upgrade(url)
    assert schema.current(url) == schema.HEAD


def test_a_migration_that_fails_leaves_nothing_behind(empty_urls, monkeypatch):
    url, _ = empty_urls
    real = schema._migrate

    def broken(connection):
        real(connection)
        raise RuntimeError

    monkeypatch.setattr(schema, "_migrate", broken)
    with pytest.raises(RuntimeError):
        schema.upgrade(url)
    assert described(url) == ({}, {})
    assert schema.current(url) is None


def test_downgrading_to_nothing_removes_every_table(database_url):
    from alembic import command
    from alembic.config import Config

    db = Database(database_url)
    config = Config()
    config.set_main_option("script_location", str(schema.script_location()))
    with db.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    db.close()
    assert described(database_url) == ({}, {})


def test_the_store_loads_neither_alembic_nor_a_driver_that_is_not_used():
    program = (
        "import sys; from llmtasks.store import batches, calls, documents, feed, jobs, outbox,"
        " results, schema, workers;"
        "print([m for m in ('alembic', 'psycopg', 'celery', 'redis', 'openai') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert loaded.stdout.strip() == b"[]"
