"""What one process may spend by itself while the fleet's Redis does not answer. Pure: times are given.

The law is that of lua/gcra.lua, for `share` of each limit: granted units own disjoint stretches of time, and
in any window of W seconds, in every dimension, at most

    share * limit * (W + max(burst, longest l)) / 60        l = cost * 60 / (share * limit)

are granted; so a process spends at most one call, or `burst` seconds of its own share, at once. A claim gets
all dimensions and a place or nothing. All times are seconds of the process' monotonic clock.

Of health only the worst is assumed: whom the fleet had out, or who fails once now, is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmtasks.admission import limits
from llmtasks.admission.decisions import (
    Claim,
    Disabled,
    Failed,
    Go,
    Outcome,
    ProviderState,
    ProviderStatus,
    RateLimited,
    Wait,
)
from llmtasks.settings import Provider

#: Seconds that quota is promised ahead, as HORIZON in lua/gcra.lua: so long after the last grant of a
#: fleet that has lost its Redis its calls still begin.
HORIZON_S = 5.0

#: Who would start so much later than the soonest loses its turn, as SLACK in lua/choose.lua.
_SLACK_S = 1.0

#: A provider that failed is left alone for so long, as after FIRST_OPENING in lua/outcome.lua; by itself
#: a process sees too few calls to wait for more failures.
_FAILED_S = 30.0

#: Who waits for a place is woken when one is free; this is for the case that another one takes it.
_PLACE_S = 2.0

#: The shortest sensible wait before asking again.
_SHORTEST_S = 0.05

_BEHIND = "behind others"


@dataclass(slots=True)
class _Account:
    """One provider's share. `paid` are the TATs (lua/gcra.lua), `rates` seconds of the share per unit.

    `places` None: any number. `pace` is what the fleet last used of the limits. `out`: the fleet had it
    out, or its key is refused. `blocked` until it may be asked again, by its own word or after a failure.
    """

    provider: Provider
    rates: tuple[float, ...]
    places: int | None
    paid: list[float] = field(default_factory=lambda: [0.0] * len(limits.DIMENSIONS))
    taken: int = 0
    pace: float = 1.0
    out: bool = False
    blocked: float = 0.0
    why: str = ""
    credit: float = 0.0

    def obstacle(self, now: float) -> float:
        """Seconds until it may be called as far as its health goes."""
        return math.inf if self.out or self.places == 0 else max(0.0, self.blocked - now)

    def quota(self, now: float) -> float:
        """Seconds until it takes another claim, of any size: none is promised beyond the horizon."""
        ahead = max(
            (paid - now for paid, rate in zip(self.paid, self.rates, strict=True) if rate),
            default=0.0,
        )
        if ahead > HORIZON_S:
            return max(_SHORTEST_S, ahead - HORIZON_S)
        return _PLACE_S if self.places is not None and self.taken >= self.places else 0.0

    def lengths(self, costs: Sequence[float]) -> list[float]:
        """How long each dimension's quota takes to pay for them."""
        return [cost * rate / self.pace for cost, rate in zip(costs, self.rates, strict=True)]

    def start(self, lengths: Sequence[float], now: float) -> float:
        """When a claim may start, in every dimension at once."""
        burst = self.provider.burst_s
        starts = [
            paid + length - max(burst, length)
            for paid, length in zip(self.paid, lengths, strict=True)
            if length
        ]
        return max(now, *starts) if starts else now

    def reserve(self, lengths: Sequence[float], start: float) -> None:
        """From its start, not from now: a claim that waits must not hand its wait to the next."""
        for d, length in enumerate(lengths):
            if length:
                self.paid[d] = max(self.paid[d], start) + length
        self.taken += 1

    def correct(self, lengths: Sequence[float], now: float) -> None:
        """Negative lengths are given back, positive ones are debt. Never saves up quota of the past."""
        for d, length in enumerate(lengths):
            if length:
                self.paid[d] = max(now, max(self.paid[d], now) + length)


@dataclass(frozen=True, slots=True)
class _Plan:
    account: _Account
    lengths: Sequence[float]
    start: float


class Alone:
    """The shares of all providers in one process. One that never had them from Redis must not ask.

    Args:
        providers: As configured.
        share: The part of every limit, above 0 and at most 1.
    """

    def __init__(self, providers: Sequence[Provider], share: float) -> None:
        self._accounts = {
            provider.name: _Account(
                provider=provider,
                rates=tuple(rate / share for rate in limits.rates(provider)),
                places=None
                if provider.max_concurrency is None
                else math.floor(share * provider.max_concurrency),
            )
            for provider in providers
        }
        self._granted: dict[str, float] = {}

    def know(self, statuses: Iterable[ProviderStatus], now: float) -> None:
        """What the fleet agreed on, as long as it did. A provider's own word outlives that."""
        for status in statuses:
            account = self._accounts[status.name]
            account.pace = status.effective_ratio
            account.out = status.state not in (ProviderState.OK, ProviderState.BLOCKED)
            account.why = status.reason or account.why
            if status.state is ProviderState.BLOCKED:
                account.blocked = max(account.blocked, now + status.next_opening)

    def learn(self, name: str, outcome: Outcome, now: float) -> None:
        """What the end of a call says about its provider's health, whoever granted it."""
        account = self._accounts[name]
        match outcome:
            case RateLimited(retry_after=seconds, reason=why):
                pass
            case Failed(retry_after=seconds, reason=why):
                seconds = max(seconds, _FAILED_S)
            case Disabled(reason=why):
                account.out, account.why = True, why
                return
            case _:
                return
        if now + seconds > account.blocked:
            account.blocked, account.why = now + seconds, why

    def admit(self, claim: Claim, now: float, until: float) -> Go | Wait | None:
        """A place, how long to wait for one, or None: none will be free that may be used before `until`.

        Raises:
            DocumentTooLarge: none of the claim's providers can ever take so many tokens.
        """
        named = [self._accounts[name].provider for name in claim.providers]
        accounts = [self._accounts[one.name] for one in limits.fitting(named, claim)]
        costs = limits.costs(claim.input_tokens, claim.output_tokens)
        plans = [plan for one in accounts if (plan := _planned(one, costs, now))]
        if in_time := [plan for plan in plans if plan.start < until]:
            return self._go(_take_turn(_competitors(in_time, claim.tried)), claim, now)
        if plans:
            return None
        return self._wait(accounts, now, until)

    def holds(self, attempt_id: str) -> bool:
        """Whether a grant was given here and is not settled."""
        return attempt_id in self._granted

    def settle(self, go: Go, outcome: Outcome, now: float) -> None:
        """Book the outcome of a call that was granted here, at the pace that it was reserved at."""
        account = self._accounts[go.provider]
        pace = self._granted.pop(go.attempt_id)
        changes = limits.changes(account.provider, go, outcome)
        account.correct(
            [units * rate / pace for units, rate in zip(changes, account.rates, strict=True)], now
        )
        account.taken -= 1

    def blocked_for(self, names: Sequence[str], now: float) -> tuple[float, str]:
        """Seconds until any of them may be called as far as health goes, and why; (0.0, "") for now."""
        seconds, name = min((self._accounts[name].obstacle(now), name) for name in names)
        return (0.0, "") if seconds <= 0 else (seconds, f"{name}: {self._accounts[name].why}")

    def _go(self, plan: _Plan, claim: Claim, now: float) -> Go:
        plan.account.reserve(plan.lengths, plan.start)
        self._granted[claim.attempt_id] = plan.account.pace
        return Go(
            provider=plan.account.provider.name,
            delay=plan.start - now,
            attempt_id=claim.attempt_id,
            waiter=claim.waiter,
            key=claim.key,
            fresh=claim.fresh,
            input_tokens=claim.input_tokens,
            output_tokens=claim.output_tokens,
            max_output_tokens=claim.output_tokens,
            task=claim.task,
        )

    def _wait(self, accounts: Sequence[_Account], now: float, until: float) -> Wait | None:
        names = [account.provider.name for account in accounts]
        seconds, why = self.blocked_for(names, now)
        if seconds == 0:
            seconds = min(one.quota(now) for one in accounts if one.obstacle(now) <= 0)
        if now + seconds >= until:
            return None
        return Wait(delay=seconds, reason=why or _BEHIND, blocked=bool(why))


def _planned(account: _Account, costs: Sequence[float], now: float) -> _Plan | None:
    """When a claim would start there, if it may."""
    if account.obstacle(now) > 0 or account.quota(now) > 0:
        return None
    lengths = account.lengths(costs)
    return _Plan(account, lengths, account.start(lengths, now))


def _competitors(plans: Sequence[_Plan], tried: Sequence[str]) -> list[_Plan]:
    """Of the best rank (not tried before tried, weighted before standby), the soonest."""
    ranks = [
        (plan.account.provider.name in tried, plan.account.provider.weight == 0) for plan in plans
    ]
    best = [plan for plan, rank in zip(plans, ranks, strict=True) if rank == min(ranks)]
    soonest = min(plan.start for plan in best)
    return [plan for plan in best if plan.start <= soonest + _SLACK_S]


def _take_turn(plans: Sequence[_Plan]) -> _Plan:
    """Smooth weighted round robin: everyone earns its weight, the richest goes and pays the sum."""
    weights = [plan.account.provider.weight or 1.0 for plan in plans]
    for plan, weight in zip(plans, weights, strict=True):
        plan.account.credit += weight
    chosen = max(plans, key=lambda plan: plan.account.credit)
    chosen.account.credit -= sum(weights)
    return chosen
