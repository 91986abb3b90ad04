"""Token buckets, and what a request costs an account. Pure: time comes in, new values go out.

A bucket is kept as its debt: what was taken and has not been refilled yet. It drains at the rate,
never below zero, so an idle bucket is full whatever its capacity has become. From this follows the
promise that tests check: granted in any window W <= per_minute * W / 60 + capacity, where the
capacity is `burst_s` seconds of the rate or the largest request granted, whichever is more.
(Output counted on completion can exceed it by what was in flight: that is how such providers are.)
"""

from __future__ import annotations

from typing import Final

import msgspec

from llmtasks.simulator.config import Quota

#: Seconds. Epoch seconds as floats are exact to a quarter of a microsecond.
_ROUNDING_S: Final = 1e-6


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of one account. `debt` is what was owed at time `at` (epoch seconds)."""

    per_minute: float
    burst_s: float = 1.0
    debt: float = 0.0
    at: float = 0.0
    largest: float = 0.0

    @property
    def rate(self) -> float:
        """Refill per second."""
        return self.per_minute / 60.0

    def capacity(self, amount: float = 0.0) -> float:
        """The most that can be taken at once, when `amount` is asked for."""
        return max(self.rate * self.burst_s, self.largest, amount)

    def owed(self, now: float) -> float:
        """What was taken and is not refilled yet."""
        return max(0.0, self.debt - max(0.0, now - self.at) * self.rate)

    def level(self, now: float) -> float:
        """What is left; below zero when output went beyond it."""
        return self.capacity() - self.owed(now)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` could be granted if nobody else asked; 0.0: now.

        Who asks for nothing yet (output that is counted when it is there) needs something left.
        """
        ask = max(amount, 2 * _ROUNDING_S * self.rate)
        wait = (self.owed(now) + ask - self.capacity(ask)) / self.rate
        return wait if wait > _ROUNDING_S else 0.0

    def charged(self, amount: float, now: float) -> Bucket:
        """The bucket after `amount` was taken, whether it was there or not."""
        return Bucket(
            per_minute=self.per_minute,
            burst_s=self.burst_s,
            debt=self.owed(now) + amount,
            at=max(now, self.at),
            largest=max(self.largest, amount),
        )

    def reading(self, now: float) -> Reading:
        """What the rate-limit headers say."""
        owed = self.owed(now)
        return Reading(
            limit=self.per_minute,
            remaining=max(0.0, self.per_minute - owed),
            reset_s=owed / self.rate,
        )


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as providers show it: the limit per minute less what is not refilled yet, and the
    seconds until everything is refilled (OpenAI's published samples read like this).

    It is no permission: with a limit quantised to seconds, a request far below `remaining` can be
    refused, and `retry-after` says until when.
    """

    limit: float
    remaining: float
    reset_s: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a request takes from each bucket, at its arrival or at its completion."""

    requests: float = 0.0
    tokens: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The buckets of one account; None: no limit in that dimension."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    input_tokens: Bucket | None = None
    output_tokens: Bucket | None = None

    def wait(self, cost: Cost, now: float) -> tuple[float, str]:
        """Seconds until every bucket could grant its part, and the dimension that takes longest."""
        waits = [
            (bucket.wait(getattr(cost, name), now), name)
            for name in DIMENSIONS
            if (bucket := getattr(self, name)) is not None
        ]
        return max(waits, default=(0.0, ""))

    def charged(self, cost: Cost, now: float) -> Account:
        """The account after `cost` was taken from every bucket."""
        return Account(
            requests=_charged(self.requests, cost.requests, now),
            tokens=_charged(self.tokens, cost.tokens, now),
            input_tokens=_charged(self.input_tokens, cost.input_tokens, now),
            output_tokens=_charged(self.output_tokens, cost.output_tokens, now),
        )


DIMENSIONS: Final = ("requests", "tokens", "input_tokens", "output_tokens")


def _charged(bucket: Bucket | None, amount: float, now: float) -> Bucket | None:
    if bucket is None or amount == 0.0:
        return bucket
    return bucket.charged(amount, now)


def open_account(quota: Quota | None) -> Account:
    """Full buckets for a quota; None: no limits."""
    if quota is None:
        return Account()
    return Account(
        requests=_bucket(quota.requests_per_minute, quota.burst_s),
        tokens=_bucket(quota.tokens_per_minute, quota.burst_s),
        input_tokens=_bucket(quota.input_tokens_per_minute, quota.burst_s),
        output_tokens=_bucket(quota.output_tokens_per_minute, quota.burst_s),
    )


def _bucket(per_minute: float | None, burst_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute=per_minute, burst_s=burst_s)


def changed(account: Account, quota: Quota | None, now: float) -> Account:
    """The account under a new quota: what is owed stays owed, so a change gives nothing away."""
    return Account(
        **{
            name: _moved(getattr(account, name), bucket, now)
            for name in DIMENSIONS
            if (bucket := getattr(open_account(quota), name)) is not None
        }
    )


def _moved(old: Bucket | None, new: Bucket, now: float) -> Bucket:
    if old is None:
        return new
    return msgspec.structs.replace(new, debt=old.owed(now), at=now)


def cost_on_arrival(api: str, input_tokens: int, max_tokens: int) -> Cost:
    """OpenAI charges the input and the most the answer may have; Anthropic the input only."""
    output = max_tokens if api == "openai" else 0
    return Cost(
        requests=1,
        tokens=input_tokens + output,
        input_tokens=input_tokens,
        output_tokens=output,
    )


def cost_on_completion(api: str, output_tokens: int) -> Cost:
    """Anthropic charges the real output; OpenAI has charged for it already and refunds nothing."""
    output = 0 if api == "openai" else output_tokens
    return Cost(tokens=output, output_tokens=output)
