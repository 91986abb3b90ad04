"""Open the database; the one place where its errors become ours.

Writes take what they need at once: on SQLite `write()` begins IMMEDIATE (a read that later wants to
write would be refused when somebody else wrote meanwhile), on PostgreSQL rows are locked in arrival
order or with SKIP LOCKED.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from llmtasks import directories
from llmtasks.errors import ConfigurationError, StoreUnavailable
from llmtasks.settings import Settings
from llmtasks.store.group_commit import GroupCommit

T = TypeVar("T")

#: Seconds to wait for a lock, for SQLite's writer or for a free connection; then StoreUnavailable.
LOCK_TIMEOUT_S = 30.0
#: Seconds to wait for a connection to PostgreSQL.
CONNECT_TIMEOUT_S = 10
#: Seconds a silent peer of PostgreSQL's protocol is believed to be alive.
PEER_TIMEOUT_S = 30
#: Seconds after which PostgreSQL ends a transaction whose client stopped in the middle of it: less than a
#: worker's lease, because a worker that waits for rows of that client may be unable to renew its own.
IDLE_TRANSACTION_S = 10
#: Seconds that SQLite's writers are given between two transactions of long work: those of other processes
#: look for their turn every 0.1 s at the latest (its busy timeout), and are in no queue.
GIVE_WAY_S = 0.12
#: Bytes of SQLite's log that stay on the disk for the next transactions, once a large one is in the file.
WAL_KEPT = 16 * 2**20
#: Seconds between two tries to change the journal of a new SQLite file.
_WAL_RETRY_S = 0.02
#: The first with UPDATE ... RETURNING.
OLDEST_SQLITE = (3, 35, 0)
#: The file of the embedded default, in the data directory.
SQLITE_FILE = "llmtasks.sqlite3"

_WRITING = "llmtasks_writing"


class epoch(FunctionElement[float]):  # noqa: N801 - reads like the SQL functions it stands beside
    """Now, on the database's clock, in seconds since the epoch."""

    type = sa.Double()
    inherit_cache = True


@compiles(epoch, "sqlite")
def _epoch_sqlite(_element: epoch, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch, "postgresql")
def _epoch_postgresql(_element: epoch, _compiler: Any, **_: Any) -> str:
    # A subquery is evaluated once, which lets a comparison with it use an index.
    return "(SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision))"


class Database:
    """A pool of connections to one database.

    Args:
        url: SQLAlchemy's; `sqlite:///path` or `postgresql://…`.
        pool_size: the most connections open at once.

    Raises:
        ConfigurationError: the url is none, or its driver is not installed.
    """

    def __init__(self, url: str, pool_size: int = 10) -> None:
        self.url = _parse(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = (
            _sqlite(self.url, pool_size) if self.is_sqlite else _postgresql(self.url, pool_size)
        )
        # A reader sees one moment on both: SQLite's transactions are snapshots by themselves.
        self._reading = (
            self._engine
            if self.is_sqlite
            else self._engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._writing = self._engine.execution_options(**{_WRITING: True})
        # SQLite has one writer, and those waiting for it poll: in one process they queue here
        # instead.
        self._writer = threading.Lock() if self.is_sqlite else None
        self._together = GroupCommit(self.write) if self.is_sqlite else None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that reads, from one moment's state."""
        with _translated(), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; committed at the end, rolled back on an exception.

        Raises:
            StoreUnavailable: no connection, no lock in time, no space. Whether a commit that was
                cut took place is unknown: do it again with a statement that can be repeated.
        """
        with _translated(), self._turn(), self._writing.begin() as connection:
            yield connection

    def together(self, action: Callable[[Connection], T]) -> T:
        """Do a small write that many threads do at once; what `action` returned, committed.

        On SQLite those that wait share a transaction; `action` may run twice. PostgreSQL writes for all at
        the same time.

        Raises:
            StoreUnavailable: as for `write`.
        """
        if self._together is not None:
            return self._together(action)
        with self.write() as connection:
            return action(connection)

    def give_way(self) -> None:
        """Let others write, between two transactions of one long piece of work.

        Whoever begins anew at once has SQLite's only writer again before others have looked. PostgreSQL
        locks rows, and needs none of this.
        """
        if self.is_sqlite:
            time.sleep(GIVE_WAY_S)

    def now(self) -> float:
        """The database's clock."""
        with self.read() as connection:
            return connection.execute(sa.select(epoch())).scalar_one()

    def close(self) -> None:
        """Close every connection. The object can be used again; it opens new ones then."""
        self._engine.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=LOCK_TIMEOUT_S):
            raise StoreUnavailable(f"the database was locked for more than {LOCK_TIMEOUT_S:.0f} s")
        try:
            yield
        finally:
            self._writer.release()


def database_url(settings: Settings) -> str:
    """The configured url, else SQLite in the data directory, both made for their owner alone.

    Raises:
        ConfigurationError: they cannot be made.
    """
    if settings.database.url is not None:
        return settings.database.url
    return _sqlite_url(directories.own_file(settings, SQLITE_FILE))


def open_database(settings: Settings) -> Database:
    """The database of these settings, with the schema this version works on.

    The embedded default migrates by itself; a configured one is somebody's to look after.

    Raises:
        ConfigurationError: a configured database has another schema, or none.
        StoreUnavailable: it does not answer.
    """
    url = database_url(settings)
    database = Database(url, settings.database.pool_size)
    try:
        _ensure_schema(database, url, ours=settings.database.url is None)
    except BaseException:
        database.close()
        raise
    return database


def _ensure_schema(database: Database, url: str, *, ours: bool) -> None:
    from llmtasks.store import schema

    found = _reached(database)
    if found == schema.HEAD:
        return
    if not ours:
        raise ConfigurationError(_wrong_schema(database.url, found, schema.HEAD))
    schema.upgrade(url)


def _reached(database: Database) -> str | None:
    """The revision it has; what keeps it from answering is named with its address."""
    from llmtasks.store import schema

    try:
        return schema.revision(database)
    except StoreUnavailable as error:
        where = database.url.render_as_string(hide_password=True)
        raise StoreUnavailable(f"database.url: {where} does not answer: {error}") from None


def _wrong_schema(url: URL, found: str | None, head: str) -> str:
    where = f"database.url: {url.render_as_string(hide_password=True)}"
    if found is None:
        return f"{where} has no schema; run `llmtasks migrate`"
    if found < head:
        return f"{where} has an older schema ({found}, not {head}); run `llmtasks migrate`"
    return f"{where} has a newer schema ({found}, not {head}); install a newer llmtasks"


def _sqlite_url(path: Path) -> str:
    return URL.create("sqlite", database=str(path)).render_as_string()


def _parse(url: str) -> URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        raise ConfigurationError("database.url: is not a database url") from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigurationError("database.url: must start with sqlite:// or postgresql://")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError("database.url: SQLite needs a file: sqlite:///path")
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _sqlite(url: URL, pool_size: int) -> Engine:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ConfigurationError(
            f"database.url: SQLite {sqlite3.sqlite_version} is too old;"
            f" {'.'.join(map(str, OLDEST_SQLITE))} or newer is needed, or PostgreSQL"
        )
    # The driver must not begin transactions by itself: it would begin DEFERRED ones.
    engine = _engine(url, pool_size, {"timeout": LOCK_TIMEOUT_S, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def prepare(dbapi_connection: sqlite3.Connection, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        _use_wal(cursor)
        cursor.execute(f"PRAGMA journal_size_limit = {WAL_KEPT}")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get(_WRITING, False)
        # The driver's own: SQLAlchemy's way to it takes several times as long. Its errors are those of
        # the driver, which `_translated` knows.
        driver = cast("sqlite3.Connection", connection.connection.driver_connection)
        driver.execute("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Change the file's journal, which is done once in its life and wants the file for itself.

    Of several that do so at once SQLite refuses all but one, without waiting for its busy timeout.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_WAL_RETRY_S)
        else:
            return


def _postgresql(url: URL, pool_size: int) -> Engine:
    arguments: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": PEER_TIMEOUT_S // 3,
        "keepalives_interval": PEER_TIMEOUT_S // 3,
        "keepalives_count": 2,
        "tcp_user_timeout": PEER_TIMEOUT_S * 1000,
    }
    chosen = {key: value for key, value in arguments.items() if key not in url.query}
    try:
        engine = _engine(url, pool_size, chosen)
    except (ImportError, exc.NoSuchModuleError):
        raise ConfigurationError(
            f"database.url: the driver of {url.drivername} is not installed;"
            " install llmtasks[postgres]"
        ) from None

    @event.listens_for(engine, "connect")
    def prepare(dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S:.0f}s'")
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_S}s'")
        # Compiling a plan takes longer than any of our statements.
        cursor.execute("SET jit = off")
        cursor.close()
        dbapi_connection.commit()

    return engine


def _engine(url: URL, pool_size: int, arguments: dict[str, Any]) -> Engine:
    return sa.create_engine(
        url,
        connect_args=arguments,
        hide_parameters=True,  # they hold document text
        json_serializer=_dump,
        max_overflow=0,
        pool_pre_ping=url.get_backend_name() != "sqlite",
        pool_size=pool_size,
        pool_timeout=LOCK_TIMEOUT_S,
    )


def _dump(value: object) -> str:
    """JSON in UTF-8; all ASCII where a lone surrogate leaves no choice. NaN is refused: no JSON."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text


#: SQLite's result codes that say something of the moment, the file or the disk, not of the
#: statement.
_SQLITE_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
#: PostgreSQL's codes outside OperationalError: a standby after a failover, an idle transaction
#: ended.
_POSTGRESQL_OUTAGES = frozenset({"25006", "25P03"})


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except exc.TimeoutError:
        raise StoreUnavailable(
            f"no database connection was free for {LOCK_TIMEOUT_S:.0f} s"
        ) from None
    except exc.DBAPIError as error:
        if not _is_outage(error):
            raise
        raise StoreUnavailable(_first_line(error.orig)) from error
    except sqlite3.Error as error:  # of BEGIN
        if not _is_sqlite_outage(error):
            raise
        raise StoreUnavailable(_first_line(error)) from error


def _is_outage(error: exc.DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return _is_sqlite_outage(error.orig)
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return True
    return getattr(error.orig, "sqlstate", None) in _POSTGRESQL_OUTAGES


def _is_sqlite_outage(error: sqlite3.Error) -> bool:
    # The low byte is the code, the rest refines it. Errors of Python's own have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_OUTAGES


def _first_line(error: BaseException | None) -> str:
    """What happened. Further lines of PostgreSQL quote the statement."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
