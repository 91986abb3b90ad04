"""Log lines: a fixed event name plus fields, one line each, to standard error.

Fields are ids, names, counts and durations. Document text, prompts, answers and secrets are never given
to a logger anywhere in this project; unexpected exceptions are logged by type and place, without their
message, because a message may quote what it choked on.

A program that uses the library and configures nothing sees warnings alone; a worker writes what `[log]` says.
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from types import TracebackType
from typing import Any

_ROOT = "llmtasks"

#: The event of what other libraries say.
OTHERS = "message"

#: Characters that are shown of it: the rest may be a message's body.
_MOST_OF_OTHERS = 500


def get(name: str) -> logging.Logger:
    """The logger of one of our rooms: `get("executor")`."""
    return logging.getLogger(f"{_ROOT}.{name}")


def event(logger: logging.Logger, level: int, name: str, /, **fields: Any) -> None:
    """Log an event with its fields; one that is None is unknown, and left out."""
    if logger.isEnabledFor(level):
        logger.log(level, _Event(name, {k: _plain(v) for k, v in fields.items() if v is not None}))


def debug(logger: logging.Logger, name: str, /, **fields: Any) -> None:
    """What follows one job on its way."""
    event(logger, logging.DEBUG, name, **fields)


def info(logger: logging.Logger, name: str, /, **fields: Any) -> None:
    """Something an operator reads afterwards."""
    event(logger, logging.INFO, name, **fields)


def warning(logger: logging.Logger, name: str, /, **fields: Any) -> None:
    """Something an operator may want to know now."""
    event(logger, logging.WARNING, name, **fields)


def error(logger: logging.Logger, name: str, /, **fields: Any) -> None:
    """Something an operator has to do something about."""
    event(logger, logging.ERROR, name, **fields)


def place(exception: BaseException) -> str:
    """Where an exception was raised: `file.py:12 in function`, innermost frame, no message."""
    return _innermost(exception.__traceback__)


def configure(level: str, style: str = "text", *, celery: int = logging.WARNING) -> None:
    """Send our lines to standard error, and what Celery and others complain of, in the same form.

    Called by commands, never on import. Who gave the root logger a handler before has what others say.

    Args:
        level: The least severe of our lines.
        style: `text` or `json`.
        celery: The least severe of Celery's.
    """
    _give_handler(_ROOT, logging.StreamHandler(), style)
    ours = logging.getLogger(_ROOT)
    ours.setLevel(level.upper())
    ours.propagate = False
    _give_handler(None, logging.StreamHandler(), style)
    logging.getLogger("celery").setLevel(celery)


def into_file(path: str, style: str = "text") -> None:
    """Send all of it to a file instead, which may be moved away for a new one (Celery's `--logfile`)."""
    for name in (_ROOT, None):
        logging.getLogger(name).handlers.clear()
        _give_handler(name, WatchedFileHandler(path, encoding="utf-8"), style)


class TextFormatter(logging.Formatter):
    """`time LEVEL logger event key=value ...`; values that need it are quoted as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record has."""
        said = _said(record)
        time = self.formatTime(record)
        return f"{time} {record.levelname} {record.name} {said}"


class JsonFormatter(logging.Formatter):
    """An object on one line: `timestamp` (UTC, ISO 8601), `level`, `logger`, `event`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record has."""
        said = _said(record)
        when = datetime.fromtimestamp(record.created, UTC)
        head = {
            "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": said.name,
        }
        # ASCII alone: whatever an id has, no reader takes it for the end of the line.
        return json.dumps({**head, **{k: v for k, v in said.fields.items() if k not in head}})


_FORMATTERS: Mapping[str, type[logging.Formatter]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}


@dataclass(frozen=True, slots=True)
class _Event:
    """What a record of ours carries. Handlers of others see its text."""

    name: str
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={_quoted(v)}" for k, v in self.fields.items())])


def _said(record: logging.LogRecord) -> _Event:
    return record.msg if isinstance(record.msg, _Event) else _by_others(record)


def _by_others(record: logging.LogRecord) -> _Event:
    """What another library says: the first line of it, by its type alone what was raised.

    Further lines of Celery's are the bodies of messages; those of exceptions may quote a document.
    """
    told = getattr(record, "data", None)
    told = told if isinstance(told, dict) else {}
    text = record.getMessage()
    if "description" in told:  # that a task failed, with all that its exception says
        text = f"Task {told.get('name')} {told['description']}"
    raised = record.exc_info[1] if record.exc_info else None
    fields = {
        "text": next(iter(text.strip().splitlines()), "")[:_MOST_OF_OTHERS],
        "job": told.get("id"),
        "error": type(raised).__name__ if raised is not None else None,
        "at": place(raised) if raised is not None else None,
    }
    return _Event(OTHERS, {k: _plain(v) for k, v in fields.items() if v is not None})


def _give_handler(name: str | None, handler: logging.Handler, style: str) -> None:
    logger = logging.getLogger(name)
    if not logger.handlers:
        handler.setFormatter(_FORMATTERS[style]())
        logger.addHandler(handler)


def _innermost(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    if not frames:
        return "unknown"
    last = frames[-1]
    return f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name}"


def _plain(value: Any) -> Any:
    """A field as JSON has it; what is no number, truth or list of texts is its text."""
    match value:
        case bool() | int():
            return value
        case float():
            if not math.isfinite(value):
                return str(value)
            # Milliseconds are enough of a duration; a price may be a small part of a cent.
            return round(value, 3 if abs(value) >= 1 else 6)
        case list() | tuple():
            return [str(one) for one in value]
        case _:
            return str(value)


def _quoted(value: Any) -> str:
    """A field as text: quoted unless it is one printable word that cannot be taken for another field."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6f}".rstrip("0").rstrip(".")
        case list():
            text = ",".join(value)
        case _:
            text = str(value)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
