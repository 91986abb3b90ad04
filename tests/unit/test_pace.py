"""Rate and estimate of a batch, without any clock but the one the test tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.cli.pace import LONGEST_S, WINDOW_S, Observation, Pace


def seen(at, ended, *, total=10_000, worked=None, running=8):
    worked = ended if worked is None else worked
    return Observation(at=at, total=total, ended=ended, worked=worked, running=running)


def paced(*observations):
    pace = Pace()
    for observation in observations:
        pace = pace.after(observation)
    return pace


def test_nothing_is_said_before_anything_is_known():
    assert Pace().per_second() is None
    assert Pace().eta_s() is None
    assert paced(seen(0, 0)).eta_s() is None
    assert paced(seen(0, 0), seen(0.5, 40)).per_second() is None


def test_nothing_left_takes_no_time():
    assert paced(seen(0, 10_000)).eta_s() == 0.0


@given(
    rate=st.floats(0.05, 500),
    step=st.floats(0.5, 20),
    ticks=st.integers(80, 200),
)
def test_a_steady_batch_is_told_its_rate_and_its_end(rate, step, ticks):
    total = int(2 * rate * step * ticks) + 100
    ended = [1 + int(n * step * rate) for n in range(ticks)]
    pace = paced(*(seen(n * step, ended[n], total=total) for n in range(ticks)))
    # One job more or less at either end of the window.
    tolerance = 1.01 / min(step * (ticks - 1), WINDOW_S)
    assert pace.per_second() == pytest.approx(rate, abs=tolerance)
    eta = pace.eta_s()
    if eta is None:
        assert pace.per_second() == 0
    else:
        assert (total - ended[-1]) / eta == pytest.approx(rate, abs=tolerance)


@given(
    st.lists(
        st.tuples(st.floats(0.1, 400), st.integers(-5, 50), st.integers(0, 50), st.integers(0, 3)),
        max_size=60,
    )
)
def test_whatever_happens_no_number_is_negative_and_memory_is_bounded(steps):
    pace, at, ended = Pace(), 0.0, 0
    for wait, change, worked, running in steps:
        at, ended = at + wait, min(max(0, ended + change), 100)
        pace = pace.after(seen(at, ended, total=100, worked=min(worked, ended), running=running))
        assert (pace.per_second() or 0.0) >= 0
        assert (pace.eta_s() or 0.0) >= 0
        assert len([p for p in pace.points if p.at < at - LONGEST_S]) <= 1


def test_stored_answers_at_the_start_do_not_promise_the_rest_at_their_speed():
    burst = [seen(n / 2, 400 * n, worked=0) for n in range(6)]  # 2,000 in 2.5 s
    assert paced(*burst).eta_s() is None
    working = [seen(3 + n, 2_000 + 10 * n, worked=10 * n) for n in range(1, 15)]
    estimate = paced(*burst, *working).eta_s()
    assert estimate == pytest.approx((10_000 - 2_140) / 10)


def test_a_batch_of_stored_answers_alone_is_estimated_after_a_window():
    pace = paced(*(seen(float(n), 100 * n, worked=0) for n in range(int(WINDOW_S) + 2)))
    assert pace.eta_s() == pytest.approx((10_000 - 3_100) / 100)


def test_a_long_wait_does_not_slow_the_estimate_of_what_comes_after():
    before = [seen(float(n), 10 * n) for n in range(20)]
    waiting = [seen(20.0 + n, 190, running=0) for n in range(1, 120)]
    assert paced(*before, *waiting).eta_s() is None
    after = [seen(140.0 + n, 190 + 10 * n) for n in range(1, 4)]
    pace = paced(*before, *waiting, *after)
    assert pace.eta_s() == pytest.approx((10_000 - 220) / 10, rel=0.25)
    rate = pace.per_second()
    assert rate is not None
    assert rate < 3  # the rate that is shown does say that it stood still


def test_slow_jobs_are_measured_over_more_than_a_window():
    pace = paced(*(seen(10.0 * n, n // 6, total=100) for n in range(30)))  # one a minute
    assert pace.per_second() == pytest.approx(1 / 60, rel=0.3)


def test_jobs_queued_again_start_another_race():
    pace = paced(seen(0, 50), seen(10, 100), seen(20, 40))
    assert pace.per_second() is None
    assert len(pace.points) == 1


def test_a_follower_that_was_asleep_still_has_a_rate():
    assert paced(seen(0, 0), seen(3_600, 3_600)).per_second() == pytest.approx(1.0)
