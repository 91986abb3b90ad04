"""Child processes that end with this one, however this one ends.

On Linux the kernel ends them even when this process is killed. Elsewhere nothing can: there they end with
every other way of ending.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


#: Ties itself to its parent and becomes the command, which stays tied. A `preexec_fn` would do so between
#: fork and exec, where Python's own fork hooks run, and an exception of a signal handler is lost.
_TIE = f"""
import ctypes, os, signal, sys
parent, number, *argv = sys.argv[1:]
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(number))
if os.getppid() != int(parent):  # it died in between
    os._exit(1)
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, not by the command
    signal.signal(ignored, signal.SIG_DFL)
os.execv(argv[0], argv)
"""


def tied(argv: Sequence[str], orphaned: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command, made to get a signal when the process that starts it ends; as it is off Linux.

    Takes some hundredths of a second. The kernel ties it to the thread that starts it: start children from
    threads that live on.

    Args:
        argv: With the program's whole path.
        orphaned: The signal.
    """
    if not sys.platform.startswith("linux"):
        return list(argv)
    return [sys.executable, "-ISc", _TIE, str(os.getpid()), str(int(orphaned)), *argv]


def follow_parent(parent: int) -> None:
    """End this process (by SIGTERM) when its parent ends; at once when that has ended already.

    Does nothing off Linux.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            raise SystemExit(143)


def start(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    pipe: bool = False,
    env: Mapping[str, str] | None = None,
    orphaned: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[str]:
    """Start a child; see `child`. Whoever starts it ends it, by `stop`."""
    with _opened(log) as file:
        return subprocess.Popen(  # noqa: S603  # our own modules
            tied(argv, orphaned),
            env=env,
            stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else file,
            stderr=file,
            text=True,
            # Ctrl-C reaches this process alone, which stops the others in order.
            start_new_session=True,
        )


def stop(process: subprocess.Popen[str], grace_s: float) -> None:
    """End a child: SIGTERM, then, `grace_s` seconds later, SIGKILL."""
    process.terminate()
    try:
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def child(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    pipe: bool = False,
    grace_s: float = 10.0,
    env: Mapping[str, str] | None = None,
    orphaned: signal.Signals = signal.SIGKILL,
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with this one, however this one ends.

    Args:
        argv: What to run.
        log: A file that its output is added to, readable by its owner alone. None: our own output.
        pipe: Talk with it over its standard input and output instead.
        grace_s: Seconds from SIGTERM to SIGKILL when the block ends.
        env: Its environment; None: ours.
        orphaned: The signal it gets when this process is killed.
    """
    process = start(argv, log=log, pipe=pipe, env=env, orphaned=orphaned)
    try:
        yield process
    finally:
        stop(process, grace_s)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[int | None]:
    """Hold a lock file, released with this process however it ends.

    Yields None when it is ours; else the process id of its holder, 0 when that is not known.
    """
    with lock.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            said = file.read().strip()
            yield int(said) if said.isdigit() else 0
            return
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield None


@contextlib.contextmanager
def _opened(log: Path | None) -> Iterator[int | None]:
    """The log's descriptor for a child to inherit; closed here."""
    if log is None:
        yield None
        return
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
