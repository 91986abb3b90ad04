"""What was found becomes text."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from llmtasks.documents import formats
from llmtasks.documents.decoding import decode, lines
from llmtasks.documents.finding import STDIN, FileError, Found
from llmtasks.documents.formats import Format
from llmtasks.documents.pool import Pool, pool
from llmtasks.errors import InvalidDocument, NotNow

#: Files looked ahead for ones to convert. Texts are read when their turn comes.
_AHEAD = 1_000


@dataclass(frozen=True, slots=True)
class Text:
    """What a file says, or somebody gave as text; `encoding` of a text file."""

    text: str
    content_hash: str
    format: Format
    encoding: str | None


def read_found(
    found: Iterable[Found | FileError], max_bytes: int
) -> Iterator[tuple[Found, Text] | FileError]:
    """Read files in their order; conversions run ahead on all cores.

    Args:
        found: From `find`.
        max_bytes: Of a file, and of its text.
    """
    waiting: deque[_Turn] = deque()
    converting = 0  # submitted and not handed out: what is kept in memory
    with pool() as converters:
        for one in found:
            waiting.append(turn := _turn(one, converters, max_bytes))
            converting += turn.future is not None
            while waiting and (not 0 < converting < 2 * converters.size or len(waiting) == _AHEAD):
                turn = waiting.popleft()
                converting -= turn.future is not None
                yield turn.take()
        while waiting:
            yield waiting.popleft().take()


def read_one(content: str | bytes | Path, max_bytes: int, converters: Pool) -> Text:
    """Read one document.

    Args:
        content: A text, which is taken to the letter; or a file, of any format: its bytes, or its path.
        max_bytes: Of a file, and of its text.
        converters: Asked where the file is no text.

    Raises:
        InvalidDocument: why it is no document, without its name.
        NotNow: it could not be converted, and it is not to blame.
    """
    if isinstance(content, str):
        return _text(content, "text", None, max_bytes)
    if isinstance(content, Path):
        path = str(content)
        return _read_file(path, max_bytes, formats.by_suffix(path), converters)
    return _read(content, max_bytes, None, converters)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A file in line, being converted already where that has begun."""

    found: Found | FileError
    read: Callable[[], Text] | None = None
    future: Future[Text] | None = None

    def take(self) -> tuple[Found, Text] | FileError:
        if isinstance(self.found, FileError):
            return self.found
        path = self.found.path
        try:
            assert self.read is not None
            return self.found, self.read() if self.future is None else self.future.result()
        except (InvalidDocument, NotNow) as error:
            name = "standard input" if path == STDIN else path
            return FileError(path, self.found.document_id, f"{name}: {error}")


def _turn(found: Found | FileError, converters: Pool, max_bytes: int) -> _Turn:
    if isinstance(found, FileError):
        return _Turn(found)

    def read() -> Text:
        return _read_file(found.path, max_bytes, found.format, converters)

    if found.format in (None, "text"):
        return _Turn(found, read)
    return _Turn(found, read, converters.submit(read))


def _read_file(path: str, max_bytes: int, format_: Format | None, converters: Pool) -> Text:
    data = sys.stdin.buffer.read(max_bytes + 1) if path == STDIN else _content(path, max_bytes)
    return _read(data, max_bytes, format_, converters)


def _content(path: str, max_bytes: int) -> bytes:
    try:
        # Without O_NONBLOCK a FIFO without a writer would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise InvalidDocument(f"is {_kind(about.st_mode)}, not a file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                # A buffer of `max_bytes` for each small file would cost more than reading it.
                data = file.read(min(about.st_size, max_bytes) + 1)
                if len(data) > about.st_size:  # it grows, or is one of /proc
                    data += file.read(max(0, max_bytes + 1 - len(data)))
                return data
        finally:
            os.close(descriptor)
    except OSError as error:
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
            raise InvalidDocument("is a link to a file that is not there") from None
        if isinstance(error, FileNotFoundError):
            raise InvalidDocument("there is no such file or folder") from None
        raise InvalidDocument(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise InvalidDocument("holds NUL in its name: there can be no such file") from None


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device"


def _read(data: bytes, max_bytes: int, format_: Format | None, converters: Pool) -> Text:
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    if not data:
        raise InvalidDocument("is empty")
    format_ = format_ or formats.by_content(data)
    if format_ != "text":
        return _text(converters.convert(format_, data, max_bytes), format_, None, max_bytes)
    decoded = decode(data)
    # A file's line ends are its system's, not its author's; in a prompt the second character is paid for.
    text = lines(decoded.text)
    if not text or text.isspace():
        raise InvalidDocument("is blank")
    return _text(text, format_, decoded.encoding, max_bytes)


def _text(text: str, format_: Format, encoding: str | None, max_bytes: int) -> Text:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise InvalidDocument("holds lone surrogates, which no encoding allows") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return Text(text, hashlib.sha256(data).hexdigest(), format_, encoding)


def _too_large(max_bytes: int) -> InvalidDocument:
    return InvalidDocument(
        f"is larger than {max_bytes:,} bytes (documents.max_bytes in the settings)"
    )
