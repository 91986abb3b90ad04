"""The simulator's buckets: the oracle of the quota tests has to be exact itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.simulator.anthropic_wire import rfc3339
from llmtasks.simulator.config import Latency, Quota, narrowest, replaced
from llmtasks.simulator.openai_wire import go_duration
from llmtasks.simulator.quota import (
    Bucket,
    changed,
    cost_on_arrival,
    cost_on_completion,
    open_account,
)

START = 1_700_000_000.0
ROUNDING = 1e-3

arrivals = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5_000)), min_size=1, max_size=60)


def played(bucket: Bucket, arrivals, *, patient: bool):
    """The grants (time, amount) of a trace; the patient wait when refused and are then granted."""
    now, granted = START, []
    for pause, amount in arrivals:
        now += pause
        wait = bucket.wait(amount, now)
        if wait and patient:
            now += wait
            assert bucket.wait(amount, now) == 0.0, "retry-after was too short"
        elif wait:
            continue
        bucket = bucket.charged(amount, now)
        granted.append((now, amount))
    return bucket, granted


@given(arrivals, st.floats(60, 60_000), st.floats(0.1, 60), st.booleans())
def test_no_window_ever_grants_more_than_the_rate_and_one_capacity(
    arrivals, per_minute, burst_s, patient
):
    bucket, granted = played(
        Bucket(per_minute=per_minute, burst_s=burst_s), arrivals, patient=patient
    )
    for first, last in itertools.combinations_with_replacement(range(len(granted)), 2):
        window = granted[last][0] - granted[first][0]
        total = sum(amount for _, amount in granted[first : last + 1])
        assert total <= per_minute * window / 60 + bucket.capacity() + ROUNDING * (last - first + 1)


@given(st.lists(st.integers(1, 5_000), min_size=2, max_size=60), st.floats(60, 60_000))
def test_who_comes_back_when_told_gets_the_whole_rate(amounts, per_minute):
    _, granted = played(
        Bucket(per_minute=per_minute), [(0.0, amount) for amount in amounts], patient=True
    )
    taken = granted[-1][0] - START
    # At no time is less granted than the rate: the trace ends when its tokens are refilled.
    assert taken <= sum(amounts) * 60 / per_minute + 1e-3


@given(st.floats(1, 1e6), st.floats(0.1, 60), st.integers(1, 10_000_000))
def test_a_rested_bucket_grants_a_request_of_any_size(per_minute, burst_s, amount):
    assert Bucket(per_minute=per_minute, burst_s=burst_s).wait(amount, START) == 0.0


@given(arrivals, st.floats(60, 60_000), st.floats(0, 100))
def test_headers_tell_what_is_not_refilled_yet(arrivals, per_minute, later):
    bucket, granted = played(Bucket(per_minute=per_minute), arrivals, patient=True)
    now = granted[-1][0] + later
    reading = bucket.reading(now)
    assert reading.remaining == pytest.approx(max(0.0, per_minute - bucket.owed(now)))
    assert bucket.owed(now + reading.reset_s) == pytest.approx(0.0, abs=ROUNDING)


def test_a_clock_that_runs_backwards_refills_nothing():
    bucket = Bucket(per_minute=60).charged(1, START)
    assert bucket.owed(START - 100) == 1
    assert bucket.charged(0.5, START - 100).at == START


def test_openai_accounts_pay_the_whole_allowance_on_arrival_and_get_nothing_back():
    arrival = cost_on_arrival("openai", 100, 500)
    assert (arrival.requests, arrival.tokens) == (1, 600)
    assert (arrival.input_tokens, arrival.output_tokens) == (100, 500)
    assert cost_on_completion("openai", 7).tokens == 0


def test_anthropic_accounts_pay_the_output_when_it_is_there():
    arrival = cost_on_arrival("anthropic", 100, 500)
    assert (arrival.tokens, arrival.input_tokens, arrival.output_tokens) == (100, 100, 0)
    assert cost_on_completion("anthropic", 7).output_tokens == 7


def test_output_can_go_into_debt_and_then_nothing_is_admitted_until_it_is_paid_off():
    account = open_account(Quota(output_tokens_per_minute=600))
    arrival = cost_on_arrival("anthropic", 100, 500)
    for _ in range(3):  # in flight together: nothing is owed until they answer
        assert account.wait(arrival, START)[0] == 0.0
        account = account.charged(arrival, START)
    for _ in range(3):
        account = account.charged(cost_on_completion("anthropic", 50), START)
    assert account.output_tokens.level(START) == -100
    wait, dimension = account.wait(arrival, START)
    assert dimension == "output_tokens"
    assert wait == pytest.approx(10.0, abs=0.01)
    assert account.wait(arrival, START + wait)[0] == 0.0


def test_a_refused_request_is_named_by_the_dimension_that_takes_longest():
    account = open_account(Quota(requests_per_minute=60, tokens_per_minute=60))
    cost = cost_on_arrival("openai", 10, 10)
    wait, dimension = account.charged(cost, START).wait(cost, START)
    assert (wait, dimension) == (pytest.approx(20.0), "tokens")


def test_a_changed_limit_gives_away_no_new_bucket():
    account = open_account(Quota(tokens_per_minute=600, requests_per_minute=60))
    account = account.charged(cost_on_arrival("openai", 100, 200), START)
    halved = changed(account, Quota(tokens_per_minute=300), START + 10)
    assert halved.tokens.owed(START + 10) == pytest.approx(200)
    assert halved.requests is None
    assert changed(account, None, START).tokens is None


def test_the_narrowest_value_holds_and_of_equals_the_latest():
    general, key, model = Latency(), Latency(account="a"), Latency(account="a", model="m")
    values = (general, model, key)
    assert narrowest(values, "openai", "m", "a") is model
    assert narrowest(values, "openai", "x", "a") is key
    assert narrowest(values, "openai", "x", "b") is general
    assert narrowest((), "openai", "x", "b") is None
    newer = Latency(account="a", latency_s=1)
    assert replaced(values, newer) == (general, model, newer)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.009, "9ms"),
        (0.0001, "1ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (3723.25, "1h2m3.25s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds, text):
    assert go_duration(seconds) == text


def test_times_are_rfc_3339_and_never_too_early():
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(0.001) == "1970-01-01T00:00:01Z"
