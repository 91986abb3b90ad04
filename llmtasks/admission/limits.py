"""A provider's limits as the scripts need them, and what a call costs. Pure.

Four dimensions in fixed order: requests; tokens (input and output together); input; output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from llmtasks.admission.decisions import Abandoned, Claim, Go, Outcome, RateLimited, Succeeded
from llmtasks.errors import DocumentTooLarge
from llmtasks.settings import Provider

Four = tuple[float, float, float, float]

DIMENSIONS = ("requests", "tokens", "input", "output")

_NOTHING: Four = (0, 0, 0, 0)

#: A call may last so much longer than its timeout, in seconds: connecting, and a settlement that has to
#: wait for Redis.
_MARGIN_S = 30.0


def per_minute(provider: Provider) -> tuple[float | None, ...]:
    """The limit in each dimension; None: no limit."""
    return (
        provider.requests_per_minute,
        provider.tokens_per_minute,
        provider.input_tokens_per_minute,
        provider.output_tokens_per_minute,
    )


def rates(provider: Provider) -> list[float]:
    """Seconds of quota that one unit takes, in each dimension; 0: no limit."""
    return [60.0 / limit if limit else 0.0 for limit in per_minute(provider)]


def lasting(provider: Provider) -> float:
    """Seconds after its start when a call must have ended, or its caller has died."""
    return provider.timeout_s + _MARGIN_S


def costs(input_tokens: int, output_tokens: int) -> Four:
    """What one call takes, in each dimension."""
    return (1, input_tokens + output_tokens, input_tokens, output_tokens)


def changes(provider: Provider, go: Go, outcome: Outcome) -> Four:
    """How far the truth is from what was reserved, in each dimension; negative: to give back.

    Anthropic counts real output, which may be more than was expected, and input without what it read
    from its prompt cache. OpenAI charges the reserved bound whatever the answer's length, and failed
    calls too. What became of a failed call is unknown, so it counts as consumed.
    """
    reserved = costs(go.input_tokens, go.output_tokens)
    if isinstance(outcome, Abandoned):
        return (-reserved[0], -reserved[1], -reserved[2], -reserved[3])
    usage = outcome.usage if isinstance(outcome, Succeeded) else None
    if usage is not None and counts_real_output(provider):
        real = costs(usage.input_tokens - usage.cached_input_tokens, usage.output_tokens)
        return (0, real[1] - reserved[1], real[2] - reserved[2], real[3] - reserved[3])
    return _NOTHING


def charged(provider: Provider, go: Go, outcome: Outcome) -> Mapping[str, float]:
    """What a call took in the end, by dimension; at least nothing."""
    reserved = costs(go.input_tokens, go.output_tokens)
    pairs = zip(reserved, changes(provider, go, outcome), strict=True)
    return dict(zip(DIMENSIONS, (max(0.0, cost + more) for cost, more in pairs), strict=True))


def counted(go: Go, outcome: Outcome) -> tuple[int, int]:
    """Input tokens as estimated and as the provider counted them; zeros when that tells nothing."""
    usage = outcome.usage if isinstance(outcome, Succeeded) else None
    if usage is None or not go.estimated:
        return 0, 0
    return go.estimated, usage.input_tokens


def counts_real_output(provider: Provider) -> bool:
    """Whether an answer costs the tokens it has, not those it may have."""
    return provider.kind == "anthropic"


def output_bound(provider: Provider, go: Go, outcome: Outcome) -> int:
    """The bound on an answer of which it is known what it had, where that is what it costs; else 0."""
    usage = outcome.usage if isinstance(outcome, Succeeded) else None
    return go.max_output_tokens if usage is not None and counts_real_output(provider) else 0


def stated(provider: Provider, outcome: Outcome) -> list[float]:
    """The share of its configured limit that the provider says it enforces, at most 1, in each dimension.

    0: it says nothing of it, or there is no limit to compare it with. [] when that is so of them all.
    Providers state whole numbers: the whole part of what is configured is all of it.
    """
    said = outcome.limits if isinstance(outcome, Succeeded | RateLimited) else None
    if said is None:
        return []
    named = (said.requests, said.tokens, said.input_tokens, said.output_tokens)
    shares = [
        (1.0 if one >= math.floor(limit) else one / limit) if one and limit else 0.0
        for one, limit in zip(named, per_minute(provider), strict=True)
    ]
    return shares if any(shares) else []


def fitting(providers: Sequence[Provider], claim: Claim) -> list[Provider]:
    """The providers that can ever take the claim.

    Raises:
        DocumentTooLarge: none can; the message holds the numbers of each.
    """
    misfits = {provider.name: _misfit(provider, claim) for provider in providers}
    found = [provider for provider in providers if misfits[provider.name] is None]
    if not found:
        raise DocumentTooLarge(_too_large(claim, misfits.items()))
    return found


def _misfit(provider: Provider, claim: Claim) -> str | None:
    """Why the provider can never take the claim; None when it can.

    The limit of requests is no reason: a single request waits, however few are allowed.
    """
    total = claim.input_tokens + claim.output_tokens
    if provider.context_window is not None and total > provider.context_window:
        return f"context window {provider.context_window}"
    limits = per_minute(provider)
    for d, cost in enumerate(costs(claim.input_tokens, claim.output_tokens)):
        limit = limits[d]
        if d > 0 and limit is not None and cost > limit:
            kind = "" if DIMENSIONS[d] == "tokens" else f"{DIMENSIONS[d]} "
            return f"{limit:g} {kind}tokens per minute"
    return None


def _too_large(claim: Claim, misfits: Iterable[tuple[str, str | None]]) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in misfits)
    return (
        f"the call needs {claim.input_tokens} input and {claim.output_tokens} output tokens,"
        f" more than any provider takes ({reasons})"
    )
