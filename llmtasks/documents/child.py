"""A process that converts one document after the other: `python -m llmtasks.documents.child SECONDS BYTES`.

It reads requests from standard input and answers on standard output; each is a line of JSON and the bytes
that it announces. It ends when its input ends, at once, so it outlives nobody who started it. The kernel
ends it when a conversion takes longer than SECONDS, whatever it is doing then.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from typing import IO, Any

from llmtasks.documents.pool import OUT_OF_MEMORY
from llmtasks.errors import InvalidDocument

#: Of the memory allowed: above that part a conversion is ended, before Python has none left to say so.
#: (An interpreter without any memory was seen to turn in its own handling of exceptions for ever.)
_ENOUGH = 0.75
#: Seconds between two looks at it.
_LOOK_S = 0.1

#: Deep enough for any page a person made.
_RECURSION = 5_000


def main() -> None:
    """Answer requests until there are no more."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    _confine(memory_bytes)
    requests, answers = _streams()
    waiting: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    threading.Thread(target=_watch, args=(int(memory_bytes * _ENOUGH),), daemon=True).start()
    while True:
        request, data = waiting.get()
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM is left to its default: death
        try:
            answer, text = _answer(request, data)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps({**answer, "size": len(text)}).encode() + b"\n" + text)
        answers.flush()


def _listen(requests: IO[bytes], waiting: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
    with contextlib.suppress(ValueError, MemoryError):
        while line := requests.readline():
            request = json.loads(line)
            waiting.put((request, requests.read(request["size"])))
    os._exit(0)


def _watch(most_bytes: int) -> None:
    """End this process when its address space is larger. Linux tells how large it is."""
    try:
        about = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return
    while int(os.pread(about, 100, 0).split()[0]) * resource.getpagesize() < most_bytes:
        time.sleep(_LOOK_S)
    os._exit(OUT_OF_MEMORY)


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, str], bytes]:
    """An answer and a text's bytes; an answer is empty, or says what is wrong or missing."""
    from llmtasks.documents.converting import convert, too_long

    max_bytes = request["max_bytes"]
    try:
        text = convert(request["format"], data, max_bytes).encode()
    except InvalidDocument as error:
        return {"error": str(error)}, b""
    except ImportError as error:
        return {"missing": str(error.name)}, b""
    except RecursionError:
        return {"error": "is nested too deeply to be converted"}, b""
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # a fault of a library is this file's misfortune
        return {
            "error": f"is broken, or of a kind that cannot be read ({type(error).__name__})"
        }, b""
    return ({"error": str(too_long(max_bytes))}, b"") if len(text) > max_bytes else ({}, text)


def _confine(memory_bytes: int) -> None:
    sys.setrecursionlimit(_RECURSION)
    for what, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS bounds no address space
            resource.setrlimit(what, (most, most))


def _streams() -> tuple[IO[bytes], IO[bytes]]:
    """Our pipes, where no library's `print` can reach them."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return requests, answers


if __name__ == "__main__":
    main()
