"""How numbers and foreign text are shown to people."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.cli.output import duration, limits, money, percent, price, spoken, visible
from llmtasks.settings import Provider


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (65, "1 min 05 s"),
        (3_599, "59 min 59 s"),
        (7_500, "2 h 05 min"),
        (86_400, "1 d 00 h"),
        (273_600, "3 d 04 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


_UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


@given(st.floats(0, 10_000_000))
def test_a_duration_read_back_is_off_by_less_than_its_smallest_unit(seconds):
    parts = re.findall(r"(\d+) (s|min|h|d)", duration(seconds))
    told = sum(int(number) * _UNITS[unit] for number, unit in parts)
    assert abs(told - seconds) <= _UNITS[parts[-1][1]]


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (None, "unknown"),
        (0.0, "$0.00"),
        (1e-9, "<$0.000001"),
        (0.000_012, "$0.000012"),
        (0.5, "$0.50"),
        (0.999_999_9, "$1.00"),
        (12.345, "$12.35"),
        (1_234_567.8, "$1,234,567.80"),
    ],
)
def test_money(dollars, text):
    assert money(dollars) == text


@given(st.floats(1e-12, 1e9))
def test_what_costs_something_never_reads_as_nothing(dollars):
    assert re.search("[1-9]", money(dollars))


@pytest.mark.parametrize(
    ("usd_per_mtok", "text"),
    [
        (None, "unknown"),
        ((0.075, 0.3), "$0.075 in, $0.30 out per million tokens"),
        ((1.125, 1_200.0), "$1.125 in, $1,200.00 out per million tokens"),
    ],
)
def test_prices(usd_per_mtok, text):
    assert price(usd_per_mtok) == text


def test_limits():
    provider = Provider(
        name="a", kind="openai", model="m", requests_per_minute=500, tokens_per_minute=1_500_000,
        max_concurrency=8,
    )  # fmt: skip
    assert limits(provider) == "500 requests, 1,500,000 tokens per minute, 8 at once"
    provider = Provider(name="a", kind="openai", model="m", input_tokens_per_minute=0.5)
    assert limits(provider) == "0.5 input tokens per minute"
    assert limits(Provider(name="a", kind="openai", model="m")) == "no limit"


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_all_and_nothing_are_said_only_of_all_and_nothing(part, total):
    part = min(part, total)
    assert (percent(part, total) == "100 %") == (part == total)
    assert (percent(part, total) == "0 %") == (part == 0)


@given(st.text())
def test_foreign_text_cannot_steer_the_terminal(text):
    assert visible(text).isprintable()
    assert spoken(text).isprintable()


def test_reasons_are_said_in_words():
    assert spoken("openai: RateLimitError") == "openai asked for a pause (429)"
    assert spoken("the worker is stopping") == "the worker is stopping"
    assert spoken("") == "no reason is known"
