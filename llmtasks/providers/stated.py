"""Which limits a provider says it enforces, read from its response headers. Pure.

Only what is a limit per minute counts, or can be made one. A limit per day in the place of one per minute
(Groq's requests) is above anything a minute is configured with, and so says nothing. Zero, "-1" and words
are what proxies send who know none.

Header names are looked up in lower case: give a case-insensitive mapping, or lower-case keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llmtasks.messages import StatedLimits

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,9})?", re.ASCII)
_MINUTE_S: Final = 60.0

#: Dimension of ours -> the headers that may state it.
_HEADERS: Final[Mapping[str, tuple[str, ...]]] = {
    "requests": ("x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit"),
    "tokens": ("x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"),
    "input_tokens": ("anthropic-ratelimit-input-tokens-limit",),
    "output_tokens": ("anthropic-ratelimit-output-tokens-limit",),
}
#: Azure and GitHub say in seconds what time their limits are for.
_PERIODS: Final[Mapping[str, str]] = {
    "x-ratelimit-limit-requests": "x-ratelimit-renewalperiod-requests",
    "x-ratelimit-limit-tokens": "x-ratelimit-renewalperiod-tokens",
}


def stated_limits(headers: Mapping[str, str]) -> StatedLimits | None:
    """The limits of a response; None when it states none. Of two for the same the smaller holds."""
    found: dict[str, float] = {}
    for dimension, names in _HEADERS.items():
        stated = [limit for name in names if (limit := _per_minute(headers, name)) is not None]
        if stated:
            found[dimension] = min(stated)
    return StatedLimits(**found) if found else None


def _per_minute(headers: Mapping[str, str], name: str) -> float | None:
    limit = _positive(headers.get(name))
    if limit is None or name not in _PERIODS:
        return limit
    period_s = _positive(headers.get(_PERIODS[name]))
    return limit if period_s is None else limit * _MINUTE_S / period_s


def _positive(value: str | None) -> float | None:
    if value is None or not _NUMBER.fullmatch(value := value.strip()):
        return None
    return float(value) or None
