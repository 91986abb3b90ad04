from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.providers.retry_after import LONGEST_S, asked_wait, retry_after

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
EPOCH = NOW.timestamp()


def http_date(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


def rfc3339(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "75"}, 75.0),
        ({"retry-after": " 3 "}, 3.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": http_date(30)}, 30.0),
        ({"retry-after": http_date(-30)}, 0.0),
        ({"retry-after": "Sunday, 22-Nov-26 12:00:09 GMT"}, 9.0),
        ({"retry-after-ms": "3000"}, 3.0),
        ({"retry-after-ms": "1.5", "retry-after": "9"}, 0.0015),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "7", "x-ratelimit-reset-tokens": "6s"}, 7.0),
        ({"x-ratelimit-reset-tokens": "6s"}, 6.0),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-requests": "250µs"}, 0.00025),
        ({"x-ratelimit-reset-requests": "12"}, 12.0),
        ({"anthropic-ratelimit-input-tokens-reset": rfc3339(42)}, 42.0),
        ({"anthropic-ratelimit-requests-reset": "2026-11-22T13:00:08+01:00"}, 8.0),
        ({"anthropic-ratelimit-requests-reset": "2026-11-22T12:00:08"}, 8.0),
    ],
)
def test_every_form_of_a_wait_is_read(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers, EPOCH) == pytest.approx(seconds)


def test_only_the_exhausted_dimension_is_waited_for() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "2s",
    }
    assert retry_after(headers, EPOCH) == 2.0


def test_of_two_exhausted_dimensions_the_later_reset_counts() -> None:
    headers = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": rfc3339(5),
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": rfc3339(50),
        "anthropic-ratelimit-input-tokens-remaining": "9000",
        "anthropic-ratelimit-input-tokens-reset": rfc3339(500),
    }
    assert retry_after(headers, EPOCH) == 50.0


def test_with_no_dimension_exhausted_the_latest_reset_counts() -> None:
    headers = {"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "8s"}
    assert retry_after(headers, EPOCH) == 8.0


@pytest.mark.parametrize("skew", [-90_000, -300, 300, 90_000])
def test_a_difference_between_the_clocks_does_not_change_a_dated_wait(skew: float) -> None:
    ours = EPOCH + skew
    assert retry_after({"date": http_date(0), "retry-after": http_date(20)}, ours) == 20.0
    reset = {"date": http_date(0), "anthropic-ratelimit-tokens-reset": rfc3339(20)}
    assert retry_after(reset, ours) == 20.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("-5", 0.0), ("86401", LONGEST_S), ("9" * 400, LONGEST_S), (http_date(10**8), LONGEST_S)],
)
def test_a_wait_is_never_negative_and_never_longer_than_a_day(value: str, seconds: float) -> None:
    assert retry_after({"retry-after": value}, EPOCH) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "soon", "nan", "NaN", "inf", "-inf", "1e3", "1_0", "٣", "2 s", "Mon, 99 Foo 2026", "0x10"],
)
def test_garbage_is_no_wait(value: str) -> None:
    assert retry_after({"retry-after": value, "retry-after-ms": value}, EPOCH) is None
    assert retry_after({"anthropic-ratelimit-tokens-reset": value}, EPOCH) is None


def test_a_503_is_not_read_as_a_full_quota() -> None:
    headers = {"x-ratelimit-reset-tokens": "6s", "anthropic-ratelimit-tokens-reset": rfc3339(60)}
    assert asked_wait(headers, EPOCH) is None


NAMES = st.sampled_from(
    [
        "date",
        "retry-after",
        "retry-after-ms",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
        "anthropic-ratelimit-output-tokens-reset",
    ]
)
LATIN_1 = [chr(code) for code in range(256)]  # what a header may hold
VALUES = st.one_of(
    st.text(LATIN_1, max_size=40),
    st.floats().map(str),
    st.integers().map(str),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.datetimes().map(format_datetime),
    st.text("0123456789.hmsuµn-+ :,", max_size=24),
)


@given(headers=st.dictionaries(NAMES, VALUES), now=st.floats(0, 1e11))
def test_any_headers_give_a_bounded_wait_or_none(headers: dict[str, str], now: float) -> None:
    for wait in (retry_after(headers, now), asked_wait(headers, now)):
        assert wait is None or 0.0 <= wait <= LONGEST_S


@given(h=st.integers(0, 20), m=st.integers(0, 59), ms=st.integers(0, 59_999))
def test_go_durations_are_read_to_the_millisecond(h: int, m: int, ms: int) -> None:
    written = f"{h}h{m}m{ms / 1000:.3f}s"
    wait = retry_after({"x-ratelimit-reset-tokens": written}, EPOCH)
    assert wait == pytest.approx(h * 3600 + m * 60 + ms / 1000)
