from __future__ import annotations

import zlib
from dataclasses import replace

import msgspec
import pytest
from support.fleet import provider

from llmtasks.admission import (
    Abandoned,
    Claim,
    Disabled,
    Failed,
    GivenUp,
    Go,
    RateLimited,
    Rejected,
    Succeeded,
    answers,
    limits,
)
from llmtasks.admission.scripts import compose
from llmtasks.errors import DocumentTooLarge
from llmtasks.messages import Completion, FinishReason, StatedLimits, Usage


def claim(input_tokens: int, output_tokens: int) -> Claim:
    return Claim(
        attempt_id="a",
        waiter="",
        key=None,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        providers=("p",),
    )


GO = Go(
    provider="p",
    delay=0,
    attempt_id="a",
    waiter="",
    key=None,
    fresh=False,
    input_tokens=1000,
    output_tokens=400,
    max_output_tokens=1600,
)
USAGE = Usage(input_tokens=1100, output_tokens=100, cached_input_tokens=300)
ANSWER = Completion(
    text="naïve ✓", finish_reason=FinishReason.STOP, provider="p", model="m", usage=USAGE
)


def test_openai_gives_nothing_back_because_it_charges_the_bound() -> None:
    assert limits.changes(provider("p"), GO, Succeeded(usage=USAGE)) == (0, 0, 0, 0)


def test_anthropic_counts_real_output_and_no_cache_reads() -> None:
    changes = limits.changes(provider("p", kind="anthropic"), GO, Succeeded(usage=USAGE))
    assert changes == (0, (800 + 100) - 1400, 800 - 1000, 100 - 400)


@pytest.mark.parametrize(
    "outcome", [RateLimited(retry_after=1), Failed(), Rejected(), Disabled(reason="x"), GivenUp()]
)
def test_an_unknown_outcome_counts_as_consumed(outcome: Failed) -> None:
    assert limits.changes(provider("p", kind="anthropic"), GO, outcome) == (0, 0, 0, 0)


def test_what_a_call_took_is_the_bound_at_openai_and_the_real_count_at_anthropic() -> None:
    answered = Succeeded(usage=Usage(input_tokens=90, output_tokens=7, cached_input_tokens=10))
    reserved = dict(
        zip(limits.DIMENSIONS, limits.costs(GO.input_tokens, GO.output_tokens), strict=True)
    )
    assert limits.charged(provider("p"), GO, answered) == reserved
    real = {"requests": 1, "tokens": 87, "input": 80, "output": 7}
    assert limits.charged(provider("p", kind="anthropic"), GO, answered) == real
    assert limits.charged(provider("p"), GO, Failed()) == reserved
    assert set(limits.charged(provider("p"), GO, Abandoned()).values()) == {0}


def test_only_an_estimate_and_its_real_count_teach_anything() -> None:
    estimated = replace(GO, estimated=1000)
    assert limits.counted(estimated, Succeeded(usage=USAGE)) == (1000, 1100)
    assert limits.counted(GO, Succeeded(usage=USAGE)) == (0, 0)
    assert limits.counted(estimated, Succeeded(usage=None)) == (0, 0)
    assert limits.counted(estimated, Failed()) == (0, 0)


@pytest.mark.parametrize(
    ("said", "shares"),
    [
        (None, []),
        (StatedLimits(input_tokens=10), []),
        (StatedLimits(requests=300), [0.5, 0, 0, 0]),
        (StatedLimits(requests=600, tokens=30_000), [1, 0.5, 0, 0]),
        (StatedLimits(requests=14_400, tokens=10**9), [1, 1, 0, 0]),
    ],
)
def test_stated_limits_are_shares_of_those_configured_and_never_more(
    said: StatedLimits | None, shares: list[float]
) -> None:
    ours = provider("p", requests_per_minute=600, tokens_per_minute=60_000)
    for outcome in (Succeeded(usage=None, limits=said), RateLimited(retry_after=1, limits=said)):
        assert limits.stated(ours, outcome) == shares
    assert limits.stated(ours, Failed()) == []


def test_a_stated_whole_number_is_all_of_a_configured_fraction() -> None:
    said = Succeeded(usage=None, limits=StatedLimits(requests=1, tokens=60_000))
    ours = provider("p", requests_per_minute=1.5, tokens_per_minute=60_000.7)
    assert limits.stated(ours, said) == [1, 1, 0, 0]


def test_only_an_answer_that_costs_what_it_has_tells_how_much_that_is() -> None:
    counts, charges = provider("p", kind="anthropic"), provider("p")
    assert limits.output_bound(counts, GO, Succeeded(usage=USAGE)) == 1600
    assert limits.output_bound(charges, GO, Succeeded(usage=USAGE)) == 0
    assert limits.output_bound(counts, GO, Succeeded(usage=None)) == 0
    assert limits.output_bound(counts, GO, GivenUp()) == 0


def test_an_abandoned_call_gives_everything_back() -> None:
    assert limits.changes(provider("p"), GO, Abandoned()) == (-1, -1400, -1000, -400)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"context_window": 1399}, False),
        ({"context_window": 1400}, True),
        ({"tokens_per_minute": 1399}, False),
        ({"tokens_per_minute": 1400}, True),
        ({"input_tokens_per_minute": 999, "output_tokens_per_minute": 400}, False),
        ({"input_tokens_per_minute": 1000, "output_tokens_per_minute": 399}, False),
        ({"input_tokens_per_minute": 1000, "output_tokens_per_minute": 400}, True),
        ({"requests_per_minute": 0.5}, True),
        ({}, True),
    ],
)
def test_a_call_that_can_never_go_is_refused_before_it_waits(
    values: dict[str, float],
    fits: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    wanted = claim(1000, 400)
    if fits:
        assert limits.fitting([provider("p", **values)], wanted)
    else:
        with pytest.raises(DocumentTooLarge):
            limits.fitting([provider("p", **values)], wanted)


def test_a_too_large_call_is_told_every_number() -> None:
    small = provider("small", context_window=8000)
    slow = provider("slow", tokens_per_minute=6000)
    with pytest.raises(DocumentTooLarge) as caught:
        limits.fitting([small, slow], claim(9000, 500))
    for number in ("9000", "500", "small", "8000", "slow", "6000"):
        assert number in str(caught.value)


def test_only_fitting_providers_stay_eligible() -> None:
    small, large = provider("small", context_window=100), provider("large")
    assert limits.fitting([small, large], claim(1000, 10)) == [large]


def test_a_cached_answer_survives_its_encoding() -> None:
    assert answers.decode(answers.encode(ANSWER)) == ANSWER


def test_what_a_provider_said_of_its_limits_is_not_cached() -> None:
    told = replace(ANSWER, limits=StatedLimits(requests=5))
    assert answers.decode(answers.encode(told)) == ANSWER


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"garbage",
        zlib.compress(b"{"),
        zlib.compress(b"\xff\xfe"),
        zlib.compress(msgspec.json.encode({"text": "of another version"})),
        answers.encode(ANSWER)[:-5],
    ],
)
def test_a_broken_cached_answer_is_a_miss(value: bytes | None) -> None:
    assert answers.decode(value) is None


def test_the_clock_is_the_only_part_that_can_be_replaced() -> None:
    ours = compose("local function clock() return 1 end")
    assert "redis.call('TIME')" in compose().admit.text
    assert "redis.call('TIME')" not in ours.admit.text + ours.settle.text + ours.look.text
