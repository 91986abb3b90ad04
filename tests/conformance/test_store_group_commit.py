"""Writes that threads want at the same time: in one transaction, and each with its own outcome."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from support.rows import at_once
from support.stack import eventually

from llmtasks.errors import StoreUnavailable
from llmtasks.store import engine
from llmtasks.store.engine import Database
from llmtasks.store.group_commit import MOST, GroupCommit

MANY = 2 * MOST + 5


@pytest.fixture
def db(tmp_path):
    found = Database(f"sqlite:///{tmp_path / 'db.sqlite3'}")
    with found.write() as connection:
        connection.execute(sa.text("CREATE TABLE rows (name TEXT PRIMARY KEY)"))
    yield found
    found.close()


@pytest.fixture
def commits(db):
    """The commits from now on."""
    seen = []
    sa.event.listen(db._engine, "commit", seen.append)
    return seen


def insert(db, name):
    return lambda connection: (
        connection.execute(sa.text("INSERT INTO rows VALUES (:name)"), {"name": name}),
        name,
    )[1]


def names(db):
    with db.read() as connection:
        return {row.name for row in connection.execute(sa.text("SELECT name FROM rows"))}


def waiting_behind(db, actions):
    """Do them in threads that all wait for the same writer, which then leaves; what each came to."""
    outcomes = {}

    def run(key, action):
        try:
            outcomes[key] = db.together(action)
        except Exception as error:  # noqa: BLE001  # what the thread was told
            outcomes[key] = error

    threads = [threading.Thread(target=run, args=item) for item in actions.items()]
    with db.write():
        for thread in threads:
            thread.start()
        eventually(lambda: len(db._together._pending) == len(threads), "all of them wait")
    for thread in threads:
        thread.join(60)
    return outcomes


def test_those_who_wait_for_the_writer_share_few_transactions(db, commits):
    outcomes = waiting_behind(db, {str(n): insert(db, str(n)) for n in range(MANY)})
    assert outcomes == {str(n): str(n) for n in range(MANY)}
    assert names(db) == set(outcomes)
    # Of the one who held it, of all others together, and of the look at them.
    assert len(commits) == 1 + 3 + 1


def test_a_write_that_fails_fails_alone(db):
    def wrong(_connection):
        raise ValueError("mine")

    actions = {str(n): insert(db, str(n)) for n in range(10)} | {"wrong": wrong}
    actions["twice"] = insert(db, "3")
    outcomes = waiting_behind(db, actions)
    assert isinstance(outcomes.pop("wrong"), ValueError)
    # Of the two that insert the same row one is refused, whichever came later.
    refused = [key for key, value in outcomes.items() if isinstance(value, sa.exc.IntegrityError)]
    assert len(refused) == 1
    assert refused[0] in {"3", "twice"}
    assert names(db) == {str(n) for n in range(10)}


def test_a_database_that_is_away_is_told_to_everyone_and_it_goes_on_afterwards(db, monkeypatch):
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_S", 0.1)

    def try_it():
        with pytest.raises(StoreUnavailable):
            db.together(insert(db, "never"))

    with db.write():
        at_once([try_it] * 8)
    assert db.together(insert(db, "later")) == "later"
    assert names(db) == {"later"}


def test_nobody_waits_for_the_writer_longer_than_one_does(db, monkeypatch):
    """However many wait, all are told when the first has waited for long enough."""
    waits = []

    def refused():
        waits.append(None)
        raise StoreUnavailable("the database was locked")

    together = GroupCommit(refused)
    monkeypatch.setattr(db, "_together", together)
    together._led = True  # somebody writes, for ever
    told = []

    def try_it():
        with pytest.raises(StoreUnavailable) as error:
            db.together(insert(db, "never"))
        told.append(error.value)

    threads = [threading.Thread(target=try_it) for _ in range(MANY)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(together._pending) == MANY, "all of them wait")
    together._hand_over([])
    for thread in threads:
        thread.join(60)
    assert len(waits) == 1
    assert len(set(map(id, told))) == MANY, "each has an exception of its own"


def test_one_write_that_the_disk_has_no_room_for_keeps_no_other_from_it(db):
    def large(_connection):
        raise StoreUnavailable("database or disk is full")

    outcomes = waiting_behind(db, {"large": large} | {str(n): insert(db, str(n)) for n in range(9)})
    assert isinstance(outcomes.pop("large"), StoreUnavailable)
    assert names(db) == set(outcomes) == set(outcomes.values())


def test_a_leader_that_comes_to_a_bad_end_leaves_nobody_waiting(db, monkeypatch):
    def ends(*_arguments):
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(GroupCommit, "_done_together", ends)
        with pytest.raises(MemoryError):
            db.together(insert(db, "never"))
    assert db.together(insert(db, "later")) == "later"


def test_nobody_is_forgotten_when_writers_come_and_go(db):
    def work(thread):
        return [db.together(insert(db, f"{thread}-{n}")) for n in range(50)]

    done = at_once([lambda thread=thread: work(thread) for thread in range(16)])
    assert sum(map(len, done)) == len(names(db)) == 16 * 50
    assert not db._together._led
