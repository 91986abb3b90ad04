"""Log lines: a fixed event name plus fields, one line each, to standard error.

Fields are ids, names, counts and durations. Document text, prompts, answers and secrets are never given
to a logger anywhere in this project; unexpected exceptions are logged by type and place, without their
message, because a message may quote what it choked on.
"""

from __future__ import annotations

import json
import logging
import traceback
from types import TracebackType
from typing import Any

_ROOT = "llmtasks"


def get(name: str) -> logging.Logger:
    """The logger of one of our rooms: `get("executor")`."""
    return logging.getLogger(f"{_ROOT}.{name}")


def event(logger: logging.Logger, level: int, name: str, /, **fields: Any) -> None:
    """Log `name key=value ...`; values that need it are quoted as JSON."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", " ".join([name, *(f"{k}={_value(v)}" for k, v in fields.items())]))


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


def configure(level: str) -> None:
    """Send our lines to standard error at `level`; called by commands, never on import."""
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


def _innermost(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    if not frames:
        return "unknown"
    last = frames[-1]
    return f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if text and all(c not in text for c in ' "=\n') else json.dumps(text)
