"""How long a provider asks us to stay away, read from its response headers. Pure.

Header names are looked up in lower case: give a case-insensitive mapping, or lower-case keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

#: A provider that asks for more than a day means "not today"; nobody plans further ahead.
LONGEST_S: Final = 86_400.0

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:h|ms|m|s|us|µs|μs|ns))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|μs|ns)", re.ASCII)
_UNIT_S: Final[Mapping[str, float]] = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,  # MICRO SIGN
    "μs": 1e-6,  # GREEK SMALL LETTER MU
    "ns": 1e-9,
}


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait after a 429; None when nothing readable says.

    What the provider asks for outright wins; else the reset of the rate-limit dimensions that are
    exhausted, and when none says so, the latest reset of them all.

    Args:
        headers: Of the response.
        now: Our clock in epoch seconds, for dates in a response that has no `Date` of its own.
    """
    asked = asked_wait(headers, now)
    if asked is not None:
        return asked
    clock = _server_clock(headers, now)
    waits: list[float] = []
    exhausted: list[float] = []
    for remaining, reset, parse in _dimensions():
        wait = parse(headers.get(reset, ""), clock)
        if wait is None:
            continue
        waits.append(wait)
        left = _number(headers.get(remaining, ""))
        if left is not None and left <= 0:
            exhausted.append(wait)
    return _bounded(max(exhausted or waits)) if waits else None


def asked_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after` alone: what a 503 or 529 may carry.

    (On those, rate-limit headers describe a quota that has nothing to do with the failure.)
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    value = headers.get("retry-after", "")
    wait = _number(value)
    if wait is None:
        wait = _http_date(value, _server_clock(headers, now))
    return None if wait is None else _bounded(wait)


_Parser = Callable[[str, float], float | None]


def _dimensions() -> Iterator[tuple[str, str, _Parser]]:
    """(remaining header, reset header, how to read the reset) of every known limit."""
    for dimension in ("requests", "tokens"):
        yield (
            f"x-ratelimit-remaining-{dimension}",
            f"x-ratelimit-reset-{dimension}",
            _duration,
        )
    for dimension in ("requests", "tokens", "input-tokens", "output-tokens"):
        prefix = f"anthropic-ratelimit-{dimension}"
        yield f"{prefix}-remaining", f"{prefix}-reset", _rfc3339


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S)


def _server_clock(headers: Mapping[str, str], now: float) -> float:
    """The response's own time, so that a difference between the clocks does not matter."""
    date = _http_date(headers.get("date", ""), 0.0)
    return now if date is None else date


def _number(value: str) -> float | None:
    value = value.strip()
    return float(value) if _NUMBER.fullmatch(value) else None


def _duration(value: str, _clock: float) -> float | None:
    """A Go duration (`6m0s`, `120ms`) or plain seconds."""
    value = value.strip()
    if _DURATION.fullmatch(value):
        return sum(float(n) * _UNIT_S[unit] for n, unit in _DURATION_PART.findall(value))
    return _number(value)


def _rfc3339(value: str, clock: float) -> float | None:
    """Seconds from `clock` to an RFC 3339 time; one without a zone is UTC."""
    try:
        return _epoch(datetime.fromisoformat(value.strip())) - clock
    except (ValueError, OverflowError):
        return None


def _http_date(value: str, clock: float) -> float | None:
    """Seconds from `clock` to an HTTP date."""
    try:
        seconds = _epoch(parsedate_to_datetime(value)) - clock
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def _epoch(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
