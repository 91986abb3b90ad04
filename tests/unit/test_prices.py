from __future__ import annotations

import socket
import time

import pytest
from genai_prices import Usage as ListedUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot

from llmtasks.messages import Usage
from llmtasks.providers.prices import cost_usd, per_mtok_usd

USAGES = [
    Usage(input_tokens=1000, output_tokens=100),
    Usage(input_tokens=900_000, output_tokens=64_000, cached_input_tokens=300_000),
    Usage(input_tokens=100_000, output_tokens=1, cached_input_tokens=1),
    Usage(),
]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_the_cost_is_what_the_price_list_says_for_every_model(kind: str) -> None:
    models = next(p for p in get_snapshot().providers if p.id == kind).models
    priced = 0
    for model in models:
        for usage in USAGES:
            cost = cost_usd(kind, None, model.id, usage)
            if cost is None:
                continue
            listed = calc_price(
                ListedUsage(
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                    cache_read_tokens=usage.cached_input_tokens,
                ),
                model.id,
                provider_id=kind,
            )
            assert cost == pytest.approx(float(listed.total_price)), model.id
            priced += 1
    assert priced > len(models)


@pytest.mark.parametrize(
    ("kind", "base_url", "model"),
    [
        ("openai", None, "no-such-model"),
        ("openai", None, "ft:gpt-4o-mini-2024-07-18:acme::x"),
        ("anthropic", None, "gpt-4o"),
        ("openai", "http://localhost:8000/v1", "gpt-4o-mini"),
        ("openai", "http://127.0.0.1:1/v1?to=https://api.openai.com", "gpt-4o-mini"),
        ("openai", "https://llm.example.com/v1", "gpt-4o-mini"),
        ("anthropic", "http://localhost:8080", "claude-haiku-4-5"),
        ("openai", "https://api.perplexity.ai", "sonar"),  # also charges per request
        ("openai", None, "text-embedding-3-small"),  # has no output price
    ],
)
def test_an_unknown_price_is_none_and_never_zero(
    kind: str, base_url: str | None, model: str
) -> None:
    assert cost_usd(kind, base_url, model, USAGES[0]) is None


def test_a_public_providers_address_is_priced() -> None:
    usage = Usage(input_tokens=1_000_000)
    own = cost_usd("openai", None, "gpt-4o-mini", usage)
    assert own == cost_usd("openai", "https://api.openai.com/v1", "gpt-4o-mini", usage) == 0.15


def test_prices_never_ask_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_args: object, **_kwargs: object) -> None:
        pytest.fail("a price lookup opened a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert cost_usd("openai", None, "gpt-4.1-mini", USAGES[0]) is not None


@pytest.mark.bench
def test_bench_cost() -> None:
    cost_usd("openai", None, "gpt-4o-mini", USAGES[0])
    started = time.process_time()
    for _ in range(10_000):
        cost_usd("openai", None, "gpt-4o-mini", USAGES[0])
    print(f"\ncost_usd: {(time.process_time() - started) * 100:.2f} us a call")  # noqa: T201


def test_the_price_of_a_million_tokens_is_what_a_call_is_charged_by() -> None:
    price = per_mtok_usd("openai", None, "gpt-4o-mini")
    assert price is not None
    usage = Usage(input_tokens=2_000, output_tokens=300)
    charged = cost_usd("openai", None, "gpt-4o-mini", usage)
    assert charged == pytest.approx((2_000 * price[0] + 300 * price[1]) / 1e6)
    assert per_mtok_usd("openai", "http://localhost:8000/v1", "gpt-4o-mini") is None
