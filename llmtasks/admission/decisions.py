"""What a call asks for, what it may do, and how it went. Values only; all durations are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llmtasks.messages import Completion, StatedLimits, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one model call wants.

    `attempt_id` makes it safe to ask twice: the same claim again gets the same grant and is charged
    once (the Redis client repeats a command whose answer was lost). Every new try needs a new one.
    `waiter` names the question behind it, over all its tries (`Wakes.new_waiter`).
    `key` is the cache key, a hex digest; None when the answer may neither come from the cache nor
    go there. While one claim of a key is under way, others follow it. `fresh` looks nothing up and
    neither follows nor is followed, but its answer replaces what is cached.
    `input_tokens` is an estimate, `output_tokens` the bound on the answer.
    `providers` are the eligible ones by name; those in `tried` have failed for this question
    already and are chosen only when no other can go within a few seconds.
    Who waits is served by `tenant` in turn, and `priority` 0-9, 9 first. `returned`: the last grant
    of its waiter was given back unused, so it need not wait for its turn again. `exact`: the input
    was counted with the model's own vocabulary; else it is corrected by what was learned. Answers of
    one `task` are taken to be alike in how much of `output_tokens` they have.
    """

    attempt_id: str
    waiter: str
    key: str | None
    input_tokens: int
    output_tokens: int
    providers: tuple[str, ...]
    tried: tuple[str, ...] = ()
    fresh: bool = False
    tenant: str = "default"
    priority: int = 0
    returned: bool = False
    exact: bool = True
    task: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """The question was answered before; nothing is reserved, nothing is to be settled."""

    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """Call `provider` after `delay` seconds, then settle. The tokens are those reserved for it.

    `estimated` are the input tokens that the claim named if they were an estimate, else None;
    `max_output_tokens` is its bound on the answer.
    """

    provider: str
    delay: float
    attempt_id: str
    waiter: str
    key: str | None
    fresh: bool
    input_tokens: int
    output_tokens: int
    max_output_tokens: int
    task: str = ""
    estimated: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing is reserved; ask again when woken, after `delay` seconds at the latest.

    `blocked` says that every eligible provider is out (a Retry-After, an open breaker): nothing
    that the fleet finishes will help before. Otherwise the call is merely behind others, and keeps its
    place in the line if it asks again in time, or is withdrawn with `leave`.
    """

    delay: float
    reason: str
    blocked: bool


@dataclass(frozen=True, slots=True)
class Follow:
    """Somebody is asking this very question; nothing is reserved.

    Ask again when woken (by the claim's key), after `delay` seconds at the latest.
    """

    delay: float


Decision = Hit | Go | Wait | Follow


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """The provider answered. `answer` goes to the cache; None when it must not (cut, refused).

    `usage` None: the provider did not count, and what was reserved counts as consumed. `limits` are those
    that it said it enforces: where they are lower than the configured ones, they hold.
    """

    usage: Usage | None
    answer: Completion | None = None
    limits: StatedLimits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimited:
    """The provider wants no call of anybody for `retry_after` seconds. `limits` as in `Succeeded`."""

    retry_after: float
    reason: str = "rate limited"
    limits: StatedLimits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A transient failure; counts toward the breaker. `retry_after` above 0 blocks for so long."""

    reason: str = "calls fail"
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A 4xx of the caller's making: the provider is alive, its health is untouched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disabled:
    """Key or billing: no call will work; the provider is out for minutes, then probed once."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """The call was sent and its caller stopped waiting: consumed, and nothing learned of health."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """The call was never sent; everything reserved is given back."""


Outcome = Succeeded | RateLimited | Failed | Rejected | Disabled | GivenUp | Abandoned


class ProviderState(StrEnum):
    """How a provider stands, in one word."""

    OK = "ok"
    BLOCKED = "blocked"  # it asked for silence (Retry-After)
    OPEN = "open"  # it failed too often in a row
    HALF_OPEN = "half-open"  # the next call, or one under way, tells whether it is back
    DISABLED = "disabled"  # key or billing


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One limit of a provider: per minute, and how many seconds of it are promised beyond now."""

    name: str
    per_minute: float
    ahead_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """A provider as the fleet sees it.

    `next_opening` is in how many seconds a block ends, `next_free` in how many a small call could
    start; both 0.0 for now. `in_flight` is counted for providers with a `max_concurrency` only.
    `waiting` calls stand in its line (one may stand in several). `effective_ratio` is the share of its
    limits that is used: less than 1 after it has said that there are too many, while it states lower ones
    (then of the dimension that is furthest below), or while it comes back.
    """

    name: str
    state: ProviderState
    reason: str
    next_opening: float
    next_free: float
    waiting: int
    effective_ratio: float
    in_flight: int | None
    max_concurrency: int | None
    dimensions: tuple[Dimension, ...]
