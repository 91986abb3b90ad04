"""Opening, closing and losing either database."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import threading

import pytest
import sqlalchemy as sa
from support.rows import at_once, claimed, new_document, new_job

from llmtasks.errors import ConfigurationError, StoreUnavailable
from llmtasks.jobs import JobState
from llmtasks.settings import Database as DatabaseSettings
from llmtasks.settings import Local, Settings
from llmtasks.store import documents, engine, jobs, schema
from llmtasks.store.engine import Database, database_url, open_database


def sql(db, statement):
    with db.write() as connection:
        connection.execute(sa.text(statement))


# --- what every database promises


def test_the_clock_is_the_databases_in_seconds_since_the_epoch(db):
    import time

    before = db.now()
    assert abs(before - time.time()) < 5
    assert db.now() >= before


def test_an_exception_rolls_back(db):
    with pytest.raises(RuntimeError), db.write() as connection:  # noqa: PT012 - a whole transaction
        connection.execute(sa.text("INSERT INTO queues VALUES ('summarize', 1.0)"))
        raise RuntimeError
    with db.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM queues")).scalar_one() == 0


def test_a_reader_sees_one_moment(db):
    jobs.insert(db, [new_job("a")], sent=True)
    count = sa.text("SELECT count(*) FROM jobs")
    with db.read() as connection:
        assert connection.execute(count).scalar_one() == 1
        jobs.insert(db, [new_job("b")], sent=True)
        assert connection.execute(count).scalar_one() == 1


@pytest.mark.parametrize(
    "statement", ["SELECT nothing FROM nowhere", "SELEC 1", "INSERT INTO queues VALUES ('x', NULL)"]
)
def test_our_own_mistakes_are_not_called_an_outage(db, statement):
    with pytest.raises(sa.exc.DBAPIError):
        sql(db, statement)


def test_an_exhausted_pool_is_an_outage(database_url, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.05)
    db = Database(database_url, pool_size=1)
    try:
        with db.read(), pytest.raises(StoreUnavailable, match="free"):
            db.now()
    finally:
        db.close()


def test_a_lock_that_is_not_freed_in_time_is_an_outage(database_url, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 1.0)
    holder, other = Database(database_url), Database(database_url, pool_size=1)
    try:
        jobs.insert(holder, [new_job()], sent=True)
        with holder.write() as connection:
            connection.execute(sa.text("UPDATE jobs SET fence = fence"))
            for _ in range(2):  # the one connection is given back, with no transaction of its own
                with pytest.raises(StoreUnavailable, match="lock"):
                    jobs.claim(other, "job", "worker")
                assert jobs.get(other, "job").state == JobState.QUEUED
        assert jobs.claim(other, "job", "worker") is not None
    finally:
        holder.close()
        other.close()


def test_in_one_process_writers_queue_and_give_up_in_time(database_url, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 1.0)
    db = Database(database_url)
    jobs.insert(db, [new_job()], sent=True)
    held, done = threading.Event(), threading.Event()

    def hold():
        with db.write() as connection:
            connection.execute(sa.text("UPDATE jobs SET fence = fence"))
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(10)
        with pytest.raises(StoreUnavailable):
            jobs.claim(db, "job", "worker")
    finally:
        done.set()
        holder.join()
    assert jobs.claim(db, "job", "worker") is not None
    db.close()


def test_a_closed_database_opens_again(db):
    db.close()
    assert db.now() > 0


def test_many_writers_at_once_all_get_their_turn(db):
    for number in range(8):
        jobs.insert(db, [new_job(str(number))], sent=True)

    def work(name):
        for _ in range(10):
            job = jobs.claim(db, name, "worker")
            assert jobs.release(db, job, attempts=0)

    at_once([lambda n=str(n): work(n) for n in range(8)])
    assert {jobs.get(db, str(n)).fence for n in range(8)} == {10}


# --- PostgreSQL


@pytest.fixture
def pg(postgres):
    with postgres.database() as url:
        database = Database(url)
        yield database
        database.close()


def test_a_connection_cut_in_a_transaction_is_an_outage_and_the_next_one_works(pg):
    job = claimed(pg)
    with pytest.raises(StoreUnavailable), pg.write() as connection:  # noqa: PT012 - a whole one
        connection.execute(sa.text("UPDATE jobs SET reason = 'lost'"))
        with pg.write() as killer:
            killer.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        connection.execute(sa.text("SELECT 1"))
    assert jobs.get(pg, "job").reason is None
    assert jobs.release(pg, job, attempts=0)


def test_a_server_that_is_not_there_is_an_outage_without_the_password(postgres):
    from support.valkey import free_port

    db = Database(f"postgresql://someone:geheim@127.0.0.1:{free_port()}/nothing")
    with pytest.raises(StoreUnavailable) as refused:
        db.now()
    assert "geheim" not in str(refused.value)
    assert "\n" not in str(refused.value)
    db.close()


def test_a_deadlock_is_an_outage_of_one_of_the_two(pg):
    jobs.insert(pg, [new_job("a"), new_job("b")], sent=True)
    barrier = threading.Barrier(2)

    def lock(first, second):
        try:
            with pg.write() as connection:
                for name in (first, second):
                    connection.execute(
                        sa.text(f"UPDATE jobs SET reason = '' WHERE job_id = '{name}'")
                    )
                    if name == first:
                        barrier.wait(10)
        except StoreUnavailable:
            return False
        return True

    assert sorted(at_once([lambda: lock("a", "b"), lambda: lock("b", "a")])) == [False, True]


def test_document_text_is_not_in_the_error_of_a_failed_statement(pg):
    with pytest.raises(sa.exc.DBAPIError) as failed, pg.write() as connection:
        connection.execute(
            sa.text("INSERT INTO contents VALUES ('t', 'h', :text, 'many')"),
            {"text": "secret text"},
        )
    assert "secret text" not in str(failed.value)


def test_a_bare_postgresql_url_is_psycopgs_and_a_sqlite_url_needs_a_file():
    db = Database("postgresql://user@localhost/db")
    assert db.url.drivername == "postgresql+psycopg"
    db.close()
    for bad in ("sqlite://", "sqlite:///:memory:", "mysql://localhost/db", "no url", ""):
        with pytest.raises(ConfigurationError, match=r"database\.url"):
            Database(bad)
    with pytest.raises(ConfigurationError, match="postgres"):
        Database("postgresql+nodriver://localhost/db")


# --- SQLite


def test_sqlite_is_durable_and_lets_readers_read_while_one_writes(sqlite_file, tmp_path):
    db = Database(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    with db.read() as connection:
        pragmas = {
            name: connection.execute(sa.text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 30_000,
        "foreign_keys": 1,
    }
    db.close()


def test_a_transaction_that_writes_takes_the_lock_before_it_reads(tmp_path):
    path = tmp_path / "locks.sqlite3"
    schema.upgrade(f"sqlite:///{path}")
    db = Database(f"sqlite:///{path}")
    other = sqlite3.connect(path, timeout=0)
    with db.write(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    db.close()


def test_the_log_of_a_large_transaction_gives_its_space_back(sqlite_file, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WAL_KEPT", 100_000)
    path = shutil.copy(sqlite_file, tmp_path / "log.sqlite3")
    db = Database(f"sqlite:///{path}")
    documents.add(db, [new_document(text="a long text " * 500_000)])
    log = path.with_name("log.sqlite3-wal")
    large = log.stat().st_size
    jobs.insert(db, [new_job()], sent=True)
    assert log.stat().st_size <= 100_000 < large
    db.close()


def test_a_full_disk_is_an_outage_and_what_was_committed_stays(tmp_path):
    url = f"sqlite:///{tmp_path / 'full.sqlite3'}"
    schema.upgrade(url)
    db = Database(url, pool_size=1)
    jobs.insert(db, [new_job()], sent=True)
    with db.read() as connection:
        pages = connection.execute(sa.text("PRAGMA page_count")).scalar_one()
        connection.execute(sa.text(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(StoreUnavailable, match="full"):
        jobs.insert(db, [new_job(f"job-{n}") for n in range(5_000)], sent=True)
    assert jobs.get(db, "job") is not None
    assert jobs.get(db, "job-1") is None
    db.close()


def test_a_file_that_is_no_database_or_cannot_be_opened_is_an_outage(tmp_path):
    broken = tmp_path / "broken.sqlite3"
    broken.write_bytes(b"this is no database" * 1000)
    for path in (broken, tmp_path / "no" / "such" / "directory.sqlite3"):
        db = Database(f"sqlite:///{path}")
        with pytest.raises(StoreUnavailable):
            db.now()
        db.close()


# --- from the settings


def local(tmp_path):
    return Settings(local=Local(data_dir=str(tmp_path / "data %41 é")))


def test_the_embedded_default_is_private_and_migrates_itself(tmp_path):
    settings = local(tmp_path)
    db = open_database(settings)
    assert jobs.insert(db, [new_job()], sent=True) == [True]
    db.close()
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
    again = open_database(settings)
    assert jobs.get(again, "job") is not None
    again.close()


def test_many_programs_may_open_the_embedded_default_for_the_first_time_at_once(tmp_path):
    settings = local(tmp_path)

    def start(name):
        db = open_database(settings)
        jobs.insert(db, [new_job(name)], sent=True)
        db.close()

    at_once([lambda n=str(n): start(n) for n in range(6)])
    db = open_database(settings)
    assert jobs.get(db, "5") is not None
    db.close()


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    settings = Settings(local=Local(data_dir=str(tmp_path / "file" / "data")))
    with pytest.raises(ConfigurationError, match=r"local\.data_dir"):
        database_url(settings)


def configured(url):
    return Settings(database=DatabaseSettings(url=url, pool_size=2))


def test_a_configured_database_is_not_migrated_behind_its_owners_back(postgres, tmp_path):
    with postgres.database(migrated=False) as url:
        for empty in (url, f"sqlite:///{tmp_path / 'own.sqlite3'}"):
            with pytest.raises(ConfigurationError, match="has no schema; run `llmtasks migrate`"):
                open_database(configured(empty))
            schema.upgrade(empty)
            open_database(configured(empty)).close()


def test_an_older_and_a_newer_schema_are_told_apart(database_url):
    db = Database(database_url)
    for revision, advice in (("0000", "older.*llmtasks migrate"), ("9999", "newer.*install")):
        sql(db, f"UPDATE alembic_version SET version_num = '{revision}'")
        with pytest.raises(ConfigurationError, match=advice):
            open_database(configured(database_url))
    with pytest.raises(ConfigurationError, match="newer"):
        schema.upgrade(database_url)
    db.close()


def test_a_password_is_not_in_the_complaint_about_a_schema(postgres):
    with postgres.database(migrated=False) as url:
        secret = url.replace("postgres@", "postgres:geheim@")
        with pytest.raises(ConfigurationError) as complaint:
            open_database(configured(secret))
    assert "geheim" not in str(complaint.value)
