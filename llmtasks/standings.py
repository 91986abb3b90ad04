"""How providers stand: what the fleet says of each, what it answered of late, what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtasks.admission import ProviderStatus
from llmtasks.admission.limits import DIMENSIONS, per_minute
from llmtasks.providers.prices import per_mtok_usd
from llmtasks.settings import Provider
from llmtasks.store.calls import Answered, Recent

_NOTHING = Answered(calls=0, minute_calls=0, minute_input_tokens=0, minute_output_tokens=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All that is known of one provider. `status` is None when Redis, `recent` when SQL is away."""

    provider: Provider
    expected_share: float
    status: ProviderStatus | None
    recent: Recent | None
    price: tuple[float, float] | None

    @property
    def answered(self) -> Answered | None:
        """What it answered of late."""
        if self.recent is None:
            return None
        return self.recent.by_provider.get(self.provider.name, _NOTHING)

    @property
    def share(self) -> float | None:
        """Its part of all recent answers; None when there are none."""
        if self.recent is None or self.answered is None:
            return None
        total = sum(one.calls for one in self.recent.by_provider.values())
        return self.answered.calls / total if total else None


def standing_json(one: Standing, trouble: str = "") -> dict[str, Any]:
    """The stable shape of an element of `providers --json`; null is unknown or no limit."""
    status, answered, recent = one.status, one.answered, one.recent
    return {
        "name": one.provider.name,
        "kind": one.provider.kind,
        "model": one.provider.model,
        "state": str(status.state) if status else "unknown",
        "reason": status.reason if status else trouble,
        "blocked_s": status.next_opening if status else None,
        "next_free_s": status.next_free if status else None,
        "waiting": status.waiting if status else None,
        "effective_ratio": status.effective_ratio if status else None,
        "in_flight": status.in_flight if status else None,
        "max_concurrency": one.provider.max_concurrency,
        "standby": one.provider.weight == 0,
        "weight": one.provider.weight,
        "expected_share": one.expected_share,
        "share": one.share,
        "answers": answered.calls if answered else None,
        "answers_s": recent.seconds if recent else None,
        "limits": [
            {"name": name, "per_minute": limit, "last_minute": used}
            for name, limit, used in uses(one)
            if limit is not None
        ],
        "price": one.price
        and {"input_usd_per_mtok": one.price[0], "output_usd_per_mtok": one.price[1]},
    }


def standings(
    configured: Sequence[Provider], statuses: Mapping[str, ProviderStatus], recent: Recent | None
) -> Iterator[Standing]:
    """Each configured provider with what is known of it."""
    weights = sum(provider.weight for provider in configured)
    for provider in configured:
        yield Standing(
            provider=provider,
            expected_share=provider.weight / weights if weights else 1 / len(configured),
            status=statuses.get(provider.name),
            recent=recent,
            price=per_mtok_usd(provider.kind, provider.base_url, provider.model),
        )


def uses(one: Standing) -> Iterator[tuple[str, float | None, int | None]]:
    """Each dimension with its limit and what was answered of it in the last minute."""
    answered = one.answered
    used: tuple[int | None, ...] = (None,) * len(DIMENSIONS)
    if answered is not None:
        tokens = answered.minute_input_tokens, answered.minute_output_tokens
        used = (answered.minute_calls, sum(tokens), *tokens)
    yield from zip(DIMENSIONS, per_minute(one.provider), used, strict=True)
