"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster
from support.databases import Postgres, running_postgres, sqlite_template
from support.fleet import Fleet
from support.simulated import Simulated, simulated
from support.stack import Stack, eventually, is_own
from support.valkey import RestartableValkey, Valkey, running_valkey

from llmtasks import settings
from llmtasks.store.engine import Database


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", default="1", help="of tests/chaos: one, or first-last")


@pytest.fixture(scope="session", autouse=True)
def _nobodys_own_configuration() -> Iterator[None]:
    """A developer's keys and settings decide nothing here, and are spent by nobody."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in filter(is_own, list(os.environ)):
            patch.delenv(variable)
        yield


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """One real server per test process; every test uses a key prefix of its own."""
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def cluster_node() -> Iterator[Cluster]:
    """A real cluster of one node per test process."""
    cluster = Cluster(1)
    yield cluster
    cluster.close()


@pytest.fixture
def server_fleet(valkey: Valkey) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets under a clock of the test's: `fleet(provider("a"), ...)`."""
    with contextlib.ExitStack() as ending:
        yield functools.partial(_fleet, ending, valkey.url)


@pytest.fixture
def cluster_fleet(cluster_node: Cluster) -> Iterator[Callable[..., Fleet]]:
    """The same on a cluster."""
    with contextlib.ExitStack() as ending:
        yield functools.partial(_fleet, ending, cluster_node.url, cluster=True)


def _fleet(
    ending: contextlib.ExitStack, url: str, *providers: settings.Provider, **values: Any
) -> Fleet:
    one = Fleet(url, providers, **values)
    ending.callback(one.close)
    return one


@pytest.fixture
def fleet(server_fleet: Callable[..., Fleet]) -> Callable[..., Fleet]:
    """On a single server; what differs on a cluster is tested on both."""
    return server_fleet


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One real server per test process; every test uses a database of its own."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_file() -> Iterator[Path]:
    """A migrated SQLite file; every test uses a copy."""
    with sqlite_template() as path:
        yield path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The url of a migrated, empty database: the test runs once on each kind."""
    if request.param == "sqlite":
        copy = shutil.copy(request.getfixturevalue("sqlite_file"), tmp_path / "test.sqlite3")
        yield f"sqlite:///{copy}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """An open, empty database of either kind."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def own_valkey() -> Iterator[RestartableValkey]:
    """A server of the test's own, which it may stop, start again (empty) and flush."""
    server = RestartableValkey()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _simulated() -> Iterator[Simulated]:
    with simulated() as provider:
        yield provider


@pytest.fixture
def sim(_simulated: Simulated) -> Simulated:
    """A simulated provider as if just started. One process serves all tests of a test process."""
    eventually(
        lambda: _simulated.stats()["in_flight"] == 0, "nobody of the last test calls any more"
    )
    _simulated.reset()
    return _simulated


@pytest.fixture
def make_stack(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Stack]]:
    """Makes installations: `make_stack(providers=[...], database="postgresql", broker=own_valkey)`."""
    with contextlib.ExitStack() as ending:

        def make(
            *,
            providers: Sequence[Mapping[str, Any]],
            database: str = "sqlite",
            broker: RestartableValkey | None = None,
            embedded: bool = False,
            settings: Mapping[str, Mapping[str, Any]] | None = None,
        ) -> Stack:
            if broker is None and not embedded:
                broker = RestartableValkey()
                ending.callback(broker.stop)
            url = None
            if database == "postgresql":
                postgres = request.getfixturevalue("postgres")
                url = ending.enter_context(postgres.database())
            stack = Stack(
                tmp_path / f"stack-{uuid.uuid4().hex[:6]}",
                broker_url=broker.url if broker else None,
                database_url=url,
                providers=providers,
                settings=settings,
            )
            ending.callback(stack.close)
            if database == "sqlite" and not embedded:
                stack.give_database(request.getfixturevalue("sqlite_file"))
            return stack

        yield make
