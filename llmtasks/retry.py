"""What to do after a failure. Pure: (error, attempt) -> Retry | Postpone | Fail. Nobody else decides.

The shape is openai-python's `_should_retry` (the server's word first) with two changes: a rate limit is
no failure and spends no attempt, and the wait is bounded by equal jitter ("Exponential Backoff And
Jitter", AWS Architecture Blog, 2015) instead of a fixed ladder, so that a fleet does not come back as one.
(Not by full jitter: five attempts could then be spent within a second or two, on one blip of the provider.)
"""

from __future__ import annotations

from dataclasses import dataclass

from llmtasks.errors import (
    AdmissionUnavailable,
    AttemptsExhausted,
    AuthenticationFailed,
    DocumentSourceFailed,
    LLMTasksError,
    QuotaExhausted,
    RateLimitError,
    TransientProviderError,
)
from llmtasks.settings import Retry as Policy

#: Seconds before asking a Redis again that does not answer.
OWN_OUTAGE_S = 2.0

#: Seconds a provider stays closed at the least: "retry after 0" must not become a tight loop.
MIN_RATE_LIMIT_S = 0.1


@dataclass(frozen=True, slots=True)
class Retry:
    """Ask again in `delay` seconds; this attempt is spent."""

    delay: float


@dataclass(frozen=True, slots=True)
class Postpone:
    """Not now: ask again in `delay` seconds; costs no attempt."""

    delay: float


@dataclass(frozen=True, slots=True)
class Fail:
    """It ends here, with this error."""

    error: LLMTasksError


def decide(
    error: LLMTasksError, attempt: int, policy: Policy, jitter: float
) -> Retry | Postpone | Fail:
    """The one decision after a failure.

    Args:
        error: What happened.
        attempt: Attempts spent so far, this one included (>= 1).
        policy: `[retry]` of the settings.
        jitter: A random number in [0, 1).
    """
    match error:
        case RateLimitError():
            return Postpone(rate_limit_delay(error, policy))
        case QuotaExhausted() | AuthenticationFailed():
            # The provider is taken out by admission, which knows who else can serve, and when.
            return Postpone(0.0)
        case AdmissionUnavailable():
            return Postpone(OWN_OUTAGE_S * (0.5 + jitter))
        case TransientProviderError():
            if attempt >= policy.max_attempts:
                return Fail(
                    AttemptsExhausted(
                        f"gave up after {attempt} attempts; the last one: {describe(error)}"
                    )
                )
            return Retry(max(backoff(attempt, policy, jitter), error.retry_after or 0.0))
        case DocumentSourceFailed() if attempt < policy.max_attempts:
            return Retry(backoff(attempt, policy, jitter))
        case _:
            return Fail(error)


def rate_limit_delay(error: RateLimitError, policy: Policy) -> float:
    """Seconds a provider stays closed after a rate limit: its own word, else the configured default."""
    if error.retry_after is None:
        return policy.default_retry_after_s
    return max(MIN_RATE_LIMIT_S, error.retry_after)


def backoff(attempt: int, policy: Policy, jitter: float) -> float:
    """Equal jitter under a doubling ceiling: waits grow until `max_s`, which none is above."""
    ceiling = min(policy.max_s, policy.base_s * 2.0 ** min(attempt - 1, 30))
    return ceiling * (0.5 + jitter / 2)


def describe(error: BaseException) -> str:
    """An error as rows, reasons and messages show it: `RateLimitError: openai: 429 …`."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
