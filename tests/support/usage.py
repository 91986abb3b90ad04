"""How a provider's quota was used, read from the simulator's own log. Pure; times are seconds.

The measure is the debt of a bucket: what was taken and is not refilled yet, in seconds of the limit.
While something is owed, quota is being spent; while nothing is, the bucket is full and what accrues is
lost for ever. So the share of time in which something was owed is the share of the quota that was used,
without the noise of where a window begins and ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Charge = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Use:
    """Of a window: the `share` of the quota that was used, and the `peak` debt in seconds."""

    share: float
    peak: float


def charges(log: Sequence[Mapping[str, Any]], dimension: str) -> list[Charge]:
    """When what was charged: requests, tokens, input or output. In the order of time.

    OpenAI's tokens count on arrival, with the bound on the answer; Anthropic's output when it is there.
    """
    granted = [line for line in log if line["granted"]]
    match dimension:
        case "requests":
            found = [(line["at"], 1.0) for line in granted]
        case "tokens":
            found = [(line["at"], line["input_tokens"] + line["max_tokens"]) for line in granted]
        case "input":
            found = [(line["at"], float(line["input_tokens"])) for line in granted]
        case "output":
            found = [
                (line["at"] + line["duration_s"], float(line["output_tokens"])) for line in granted
            ]
        case _:
            raise ValueError(dimension)
    return sorted(found)


def use(found: Sequence[Charge], per_minute: float, start: float, end: float) -> Use:
    """How much of the quota between two times was used."""
    rate = per_minute / 60.0
    debt = idle = peak = 0.0
    now = found[0][0] if found else start
    for charged_at, cost in [*found, (end, 0.0)]:
        at = min(charged_at, end)
        empty = now + debt  # when everything is refilled
        idle += max(0.0, at - max(empty, start))
        debt = max(0.0, empty - at) + cost / rate
        now = at
        if start <= charged_at < end:
            peak = max(peak, debt)
    return Use(share=1.0 - idle / (end - start), peak=peak)


def most_within(found: Sequence[Charge], window_s: float) -> float:
    """The most that was charged in any window of this length."""
    most = held = 0.0
    first = 0
    for at, cost in found:
        held += cost
        while found[first][0] <= at - window_s:
            held -= found[first][1]
            first += 1
        most = max(most, held)
    return most
