from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.messages import StatedLimits
from llmtasks.providers.stated import stated_limits


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        (
            {"x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "30000"},
            StatedLimits(requests=500, tokens=30_000),
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-tokens-limit": "40000",
                "anthropic-ratelimit-input-tokens-limit": "30000",
                "anthropic-ratelimit-output-tokens-limit": "8000",
            },
            StatedLimits(requests=50, tokens=40_000, input_tokens=30_000, output_tokens=8000),
        ),
        ({"x-ratelimit-limit-tokens": " 12.5 "}, StatedLimits(tokens=12.5)),
        # Behind a proxy that has limits of its own both hold.
        (
            {"x-ratelimit-limit-requests": "90", "anthropic-ratelimit-requests-limit": "50"},
            StatedLimits(requests=50),
        ),
        # Azure and GitHub say for how many seconds they are meant.
        (
            {
                "x-ratelimit-limit-requests": "100",
                "x-ratelimit-renewalperiod-requests": "10",
                "x-ratelimit-limit-tokens": "9000",
                "x-ratelimit-renewalperiod-tokens": "60",
            },
            StatedLimits(requests=600, tokens=9000),
        ),
        (
            {"x-ratelimit-limit-requests": "86400", "x-ratelimit-renewalperiod-requests": "86400"},
            StatedLimits(requests=60),
        ),
        (
            {"x-ratelimit-limit-requests": "7", "x-ratelimit-renewalperiod-requests": "0"},
            StatedLimits(requests=7),
        ),
    ],
)
def test_stated_limits_are_read_per_minute(headers: dict[str, str], limits: StatedLimits) -> None:
    assert stated_limits(headers) == limits


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "0.0",
        "-1",
        "none",
        "None",
        "unlimited",
        "inf",
        "nan",
        "1e9",
        "150,000",
        "٣",
        "9" * 99,
    ],
)
def test_what_is_no_limit_is_not_read(value: str) -> None:
    assert stated_limits({"x-ratelimit-limit-requests": value}) is None
    assert stated_limits(
        {"x-ratelimit-limit-requests": value, "x-ratelimit-limit-tokens": "5"}
    ) == StatedLimits(tokens=5)


def test_other_headers_state_nothing() -> None:
    others = {"x-ratelimit-remaining-requests": "3", "x-ratelimit-limit": "50", "retry-after": "2"}
    assert stated_limits(others) is None


NAMES = st.sampled_from(
    [
        "x-ratelimit-limit-requests",
        "x-ratelimit-renewalperiod-requests",
        "x-ratelimit-limit-tokens",
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-output-tokens-limit",
    ]
)


@given(st.dictionaries(NAMES, st.one_of(st.text(), st.from_regex(r"[0-9.eE+-]{1,20}"))))
def test_whatever_is_sent_is_a_positive_number_or_nothing(headers: dict[str, str]) -> None:
    found = stated_limits(headers)
    if found is not None:
        named = [found.requests, found.tokens, found.input_tokens, found.output_tokens]
        assert all(0 < one < float("inf") for one in named if one is not None)
