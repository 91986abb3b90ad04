"""What a call cost, from the price list that genai-prices carries. Never asks the network."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmtasks.messages import Usage

if TYPE_CHECKING:
    from decimal import Decimal

    from genai_prices.types import ModelPrice, TieredPrices

_PER_MTOK: Final = 1e-6
#: Some prices change on a date or by the hour, so a looked-up price is used for a minute.
_REUSED_S: Final = 60


def cost_usd(kind: str, base_url: str | None, model: str, usage: Usage) -> float | None:
    """US dollars of one call; None when the price is not known, which is never the same as free.

    Args:
        kind: `openai` or `anthropic`; where the model is served when there is no `base_url`.
        base_url: Priced when it is a public provider's address; a self-hosted one is unknown.
        model: As configured.
        usage: Tokens of the call.
    """
    price = _price(kind, base_url, model, int(time.time()) // _REUSED_S)
    return None if price is None else price.of(usage)


def per_mtok_usd(kind: str, base_url: str | None, model: str) -> tuple[float, float] | None:
    """US dollars of a million input and of a million output tokens; None when the price is not known.

    The base price: some models cost more above a length, or less for cached input. Arguments as for
    `cost_usd`.
    """
    price = _price(kind, base_url, model, int(time.time()) // _REUSED_S)
    return None if price is None else (price.input.base, price.output.base)


@dataclass(frozen=True, slots=True)
class _Rate:
    """Dollars per million tokens: the base, and the steps above so many input tokens.

    A step's rate is for all tokens of the call, not only for those above it.
    """

    base: float
    steps: tuple[tuple[int, float], ...] = ()

    def at(self, input_tokens: int) -> float:
        rate = self.base
        for above, stepped in self.steps:
            if input_tokens > above:
                rate = stepped
        return rate


@dataclass(frozen=True, slots=True)
class _Price:
    """The three rates we can be charged. The same sum in genai-prices takes 120 us; here 1 us."""

    input: _Rate
    cached_input: _Rate
    output: _Rate

    def of(self, usage: Usage) -> float:
        total = usage.input_tokens
        return _PER_MTOK * (
            (total - usage.cached_input_tokens) * self.input.at(total)
            + usage.cached_input_tokens * self.cached_input.at(total)
            + usage.output_tokens * self.output.at(total)
        )


@functools.lru_cache(maxsize=256)
def _price(kind: str, base_url: str | None, model: str, _period: int) -> _Price | None:
    from datetime import UTC, datetime

    # 0.25 s to import; the bundled data only, as nobody here starts its `UpdatePrices`.
    from genai_prices.data_snapshot import get_snapshot

    if model.startswith("ft:"):
        return None  # tuned models cost more than the base model that their name matches
    try:
        _, found = get_snapshot().find_provider_model(
            model, None, kind if base_url is None else None, base_url
        )
    except LookupError:
        return None
    return _rates(found.get_prices(datetime.now(UTC)))


def _rates(listed: ModelPrice) -> _Price | None:
    input_, output = listed.input_mtok, listed.output_mtok
    if input_ is None or output is None or listed.requests_kcount is not None:
        return None  # half a price, or one with a part per request, would be too low
    price = _Price(
        input=_rate(input_),
        cached_input=_rate(input_ if listed.cache_read_mtok is None else listed.cache_read_mtok),
        output=_rate(output),
    )
    # A list of zeros is a free tier, or a price nobody entered.
    return price if price.input.base or price.output.base else None


def _rate(listed: Decimal | TieredPrices) -> _Rate:
    from genai_prices.types import TieredPrices

    if isinstance(listed, TieredPrices):
        steps = tuple((tier.start, float(tier.price)) for tier in listed.tiers)
        return _Rate(float(listed.base), steps)
    return _Rate(float(listed))
