"""The log of every request, and the counts that agree with it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any, Final

import msgspec

#: The status of a request whose client left before the answer was whole (as nginx writes it).
CLIENT_LEFT: Final = 499
#: The status of a request to which the simulator sent nothing (hang, reset).
NOTHING_SENT: Final = 0
#: Seconds until a written line is surely in the log file.
_FLUSH_S: Final = 0.2
#: Log lines encoded at a time, so that a long log does not stop the server.
_LINES: Final = 500


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request. `at` is its arrival (epoch seconds), `prompt` the digest of its question.

    `granted`: it was charged to the account's quota. `fault`: the kind of the fault that struck it,
    "quota" when the quota refused it, else empty. `whole`: a complete answer was sent.
    """

    seq: int
    request_id: str
    at: float
    account: str
    model: str
    path: str
    tag: str
    status: int
    prompt: bytes
    input_tokens: int
    max_tokens: int
    output_tokens: int
    granted: bool
    whole: bool
    stream: bool
    fault: str
    duration_s: float

    def line(self) -> bytes:
        """The entry as a JSON line."""
        data = {
            "seq": self.seq,
            "request_id": self.request_id,
            "at": round(self.at, 6),
            "account": self.account,
            "model": self.model,
            "path": self.path,
            "tag": self.tag,
            "status": self.status,
            "prompt_sha256": self.prompt.hex(),
            "input_tokens": self.input_tokens,
            "max_tokens": self.max_tokens,
            "output_tokens": self.output_tokens,
            "granted": self.granted,
            "whole": self.whole,
            "stream": self.stream,
            "fault": self.fault,
            "duration_s": round(self.duration_s, 6),
        }
        return msgspec.json.encode(data) + b"\n"


class Journal:
    """Keeps the newest `size` entries in memory and, if a file is given, writes all of them."""

    def __init__(self, *, size: int, file: IO[bytes] | None) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._file = file
        self._flush: asyncio.TimerHandle | None = None
        self._clear_counts()

    def _clear_counts(self) -> None:
        self._requests = 0
        self._answered = 0
        self._refused = 0
        self._disconnects = 0
        self._input_tokens = 0
        self._output_tokens = 0
        self._faults: Counter[str] = Counter()
        self._by_status: Counter[int] = Counter()
        self._by_path: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._by_account: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._by_model: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def clear(self) -> None:
        """Forgets entries and counts; the file keeps what it has."""
        self._entries.clear()
        self._clear_counts()

    def note(self, entry: Entry) -> None:
        """Keeps and counts an entry."""
        self._entries.append(entry)
        self._count(entry)
        if self._file is not None:
            self._file.write(entry.line())
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self._flushed)

    def _count(self, entry: Entry) -> None:
        status = entry.status
        self._requests += 1
        self._by_status[status] += 1
        self._by_path[entry.path][status] += 1
        self._by_account[entry.account][status] += 1
        self._by_model[entry.model][status] += 1
        self._answered += entry.whole
        self._output_tokens += entry.output_tokens
        if entry.granted:
            self._input_tokens += entry.input_tokens
        if entry.fault == "quota":
            self._refused += 1
        elif entry.fault:
            self._faults[entry.fault] += 1
        if status == CLIENT_LEFT:
            self._disconnects += 1

    def counts(self) -> dict[str, Any]:
        """The counts since the start or the last reset."""
        return {
            "requests": self._requests,
            "answered": self._answered,
            "refused": self._refused,
            "disconnects": self._disconnects,
            "tokens": {"input": self._input_tokens, "output": self._output_tokens},
            "faults": dict(self._faults),
            "by_status": _texts(self._by_status),
            "by_path": {key: _texts(value) for key, value in self._by_path.items()},
            "by_account": {key: _texts(value) for key, value in self._by_account.items()},
            "by_model": {key: _texts(value) for key, value in self._by_model.items()},
        }

    def pages(self, last: int | None = None) -> Iterator[bytes]:
        """The kept entries as JSON lines in the order of their completion, some hundred at a time.

        It is of one moment: entries noted while the pages are read are not among them.
        """
        entries = list(self._entries)
        if last is not None:
            entries = entries[max(0, len(entries) - last) :]
        lines = iter(entries)
        while page := b"".join(entry.line() for entry in islice(lines, _LINES)):
            yield page

    def _flushed(self) -> None:
        self._flush = None
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Writes what is still in the buffer and closes the file."""
        if self._flush is not None:
            self._flush.cancel()
        if self._file is not None:
            self._file.close()


def _texts(counter: Counter[int]) -> dict[str, int]:
    return {str(status): counter[status] for status in sorted(counter)}
