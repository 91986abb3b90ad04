"""Child processes that convert documents, started when needed and used for many documents."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from llmtasks.documents.formats import Format
from llmtasks.errors import InvalidDocument, NotNow

T = TypeVar("T")

_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR")

#: A child's exit code when a conversion got no more memory.
OUT_OF_MEMORY = 77
#: Seconds that one document may take. A PDF of 1,000 pages takes two, a megabyte of dense HTML up to ten.
DEADLINE_S = 120.0
#: Seconds before a machine without a process or a descriptor to spare is asked for one again.
NO_PROCESS_S = 5.0
#: Address space of one child. Dense HTML takes a hundred times its size.
MEMORY_BYTES = 2 << 30


class Pool:
    """Converts on all cores: `size` documents at once, whoever asks; children wait for the next one.

    `close` it: its children end at once, whatever they are doing.
    """

    def __init__(
        self,
        size: int | None = None,
        deadline_s: float = DEADLINE_S,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.size = size or _cores()
        self._argv = [
            *(sys.executable, "-P", "-m", "llmtasks.documents.child"),
            *(str(deadline_s), str(memory_bytes)),
        ]
        self._deadline_s, self._memory_bytes = deadline_s, memory_bytes
        self._threads = ThreadPoolExecutor(self.size, "convert")
        self._room = threading.BoundedSemaphore(self.size)
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._children: set[_Child] = set()
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run work that converts on a thread of ours."""
        return self._threads.submit(work)

    def convert(self, format_: Format, data: bytes, max_bytes: int) -> str:
        """The text of a document. May be called by any thread.

        Raises:
            InvalidDocument: why it has none.
            NotNow: no child can be started now, or the pool is closed; the document is not to blame.
        """
        with self._room:
            while True:
                child = self._take()
                used, answer = child.used, child.ask(format_, data, max_bytes)
                if answer is not None:
                    self._idle.put(child)
                    return _text(*answer)
                code = child.end()
                with self._lock:
                    self._children.discard(child)
                # Else what went before, or who closed us, is to blame: once more in a fresh one.
                if not used and not self._closed:
                    raise InvalidDocument(self._death(code))

    def close(self) -> None:
        """End the children; conversions under way end in `NotNow`. May be called twice."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()
        self._threads.shutdown()
        for child in children:
            child.end()

    def _take(self) -> _Child:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        with self._lock:
            if self._closed:
                raise NotNow("was not converted: stopped")
            try:
                child = _Child(self._argv)
            except OSError as error:
                raise NotNow(
                    f"was not converted: no process can be started for it ({error.strerror})",
                    delay=NO_PROCESS_S,
                ) from error
            self._children.add(child)
        return child

    def _death(self, code: int) -> str:
        if code == -signal.SIGALRM:
            return f"was not converted within {self._deadline_s:.0f} s; convert it to text first"
        if code == OUT_OF_MEMORY:
            megabytes = self._memory_bytes >> 20
            return f"needs more than {megabytes:,} MB of memory to be converted"
        if code == -signal.SIGKILL:
            return "was not converted: its converter was killed (is the memory used up?)"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"crashed its converter ({name}): it may be broken"


class _Child:
    """One process; used by one thread at a time."""

    def __init__(self, argv: list[str]) -> None:
        self.used = False
        self._process = subprocess.Popen(  # noqa: S603  # our own module
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is ours to answer
        )

    def ask(
        self, format_: Format, data: bytes, max_bytes: int
    ) -> tuple[dict[str, Any], bytes] | None:
        """Its answer and the text's bytes; None when it died of the question."""
        self.used = True
        request = {"format": format_, "size": len(data), "max_bytes": max_bytes}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n" + data)
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            text = self._process.stdout.read(answer["size"])
        except (OSError, ValueError):  # a broken pipe, or an answer cut short
            return None
        return (answer, text) if len(text) == answer["size"] else None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int:
        """Its exit code, once it has ended."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        return self._process.wait()


@contextlib.contextmanager
def pool(
    size: int | None = None, deadline_s: float = DEADLINE_S, memory_bytes: int = MEMORY_BYTES
) -> Iterator[Pool]:
    """A `Pool` that is closed in the end; no process is started before the first conversion."""
    made = Pool(size, deadline_s, memory_bytes)
    try:
        yield made
    finally:
        made.close()


def _environment() -> dict[str, str]:
    """What a child needs to start, and none of our keys: it reads what anybody may have written.

    It finds the modules that we find, and, by `-P`, none in the directory it happens to be in.
    """
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _text(answer: dict[str, Any], text: bytes) -> str:
    if "missing" in answer:
        raise InvalidDocument("needs the documents extra: pip install 'llmtasks[documents]'")
    if "error" in answer:
        raise InvalidDocument(answer["error"])
    return text.decode()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
