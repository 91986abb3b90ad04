"""Blocks and breaker: obeyed by the whole fleet, ended by one probe, deaf to late outcomes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.fleet import Fleet, provider

from llmtasks.admission import (
    Abandoned,
    Disabled,
    Failed,
    GivenUp,
    Go,
    ProviderState,
    RateLimited,
    Rejected,
    Succeeded,
    Wait,
)
from llmtasks.messages import Usage

MakeFleet = Callable[..., Fleet]

OK = Succeeded(usage=Usage(input_tokens=1, output_tokens=1))


def trip(f: Fleet) -> None:
    for _ in range(5):
        f.settle(f.go(), Failed())


def half_open(f: Fleet) -> None:
    trip(f)
    f.advance(30.1)


def test_a_retry_after_silences_everybody_and_names_its_reason(fleet: MakeFleet) -> None:
    f = fleet(provider("openai"))
    f.settle(f.go(), RateLimited(retry_after=20))
    wait = f.wait()
    assert (wait.reason, wait.blocked) == ("openai: rate limited", True)
    assert wait.delay == pytest.approx(20, abs=1e-4)
    assert f.blocked_for() == (pytest.approx(20, abs=1e-4), "openai: rate limited")
    assert f.status("openai").state is ProviderState.BLOCKED


def test_the_latest_retry_after_wins_and_a_shorter_one_shortens_nothing(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    grants = [f.go() for _ in range(4)]
    ends = []
    for go, seconds in zip(grants, (20, 5, 60, 30), strict=True):
        f.settle(go, RateLimited(retry_after=seconds))
        ends.append(f.status("a").next_opening)
    assert ends == pytest.approx([20, 20, 60, 60], abs=1e-4)


def test_a_block_about_to_end_is_waited_out_in_place(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=120, burst_s=0))
    f.settle(f.go(), RateLimited(retry_after=4))
    # At the pace that a rate limit leaves, see test_admission_feedback.
    assert [f.go().delay for _ in range(2)] == pytest.approx([4, 4 + 0.5 / 0.8], abs=1e-4)


def test_after_a_block_callers_come_one_after_the_other(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=2))
    f.settle(f.go(), RateLimited(retry_after=30))
    f.advance(30.1)
    each = 1 / f.status("a").effective_ratio
    expected = [max(0, n * each - 2 + each) for n in range(5)]
    assert [f.go().delay for _ in range(5)] == pytest.approx(expected, abs=1e-4)


def test_a_grant_that_sleeps_into_a_block_is_told_before_it_calls(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    now, later = f.go(), f.go()
    assert f.confirm(later) == 0
    f.settle(now, RateLimited(retry_after=20))
    f.advance(1)
    assert f.confirm(later) == pytest.approx(19, abs=1e-4)


def test_one_blocked_and_one_merely_busy_is_no_block(fleet: MakeFleet) -> None:
    f = fleet(provider("a"), provider("b", requests_per_minute=60, burst_s=0))
    f.settle(f.go(providers=("a",)), RateLimited(retry_after=60))
    while isinstance(decision := f.admit(), Go):
        assert decision.provider == "b"
    assert (decision.reason, decision.blocked) == ("behind others", False)
    assert 1 - 1e-4 <= decision.delay <= 1.5


def test_a_tried_provider_serves_while_the_others_are_blocked(fleet: MakeFleet) -> None:
    f = fleet(provider("a"), provider("b"))
    f.settle(f.go(providers=("b",)), RateLimited(retry_after=60))
    assert f.go(tried=("a",)).provider == "a"


def test_all_blocked_waits_for_the_first_to_open(fleet: MakeFleet) -> None:
    f = fleet(provider("a"), provider("b"))
    f.settle(f.go(providers=("a",)), RateLimited(retry_after=60))
    f.settle(f.go(providers=("b",)), RateLimited(retry_after=20))
    wait = f.wait()
    assert (wait.reason, wait.blocked) == ("b: rate limited", True)
    assert wait.delay == pytest.approx(20, abs=1e-4)


def test_four_failures_do_not_open_the_breaker_and_a_success_forgets_them(
    fleet: MakeFleet,
) -> None:
    f = fleet(provider("a"))
    for outcome in [Failed()] * 4 + [OK] + [Failed()] * 4:
        f.settle(f.go(), outcome)
    assert f.status("a").state is ProviderState.OK


def test_five_failures_in_a_row_open_the_breaker_for_the_fleet(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    trip(f)
    assert f.wait().delay == pytest.approx(30, abs=1e-4)
    assert f.status("a").state is ProviderState.OPEN
    assert f.blocked_for()[0] == pytest.approx(30, abs=1e-4)


def test_a_rejected_request_neither_harms_nor_heals(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    for outcome in [Rejected()] * 10 + [Failed()] * 4 + [Rejected()]:
        f.settle(f.go(), outcome)
    assert f.status("a").state is ProviderState.OK
    f.settle(f.go(), Failed())
    assert f.status("a").state is ProviderState.OPEN


def test_a_replayed_failure_counts_once(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    go = f.go()
    for _ in range(10):
        f.settle(go, Failed())
    assert f.status("a").state is ProviderState.OK


def test_after_the_opening_exactly_one_probes(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    half_open(f)
    assert f.blocked_for() == (0.0, "")
    assert f.status("a").state is ProviderState.HALF_OPEN
    probe = f.go()
    waits = [f.wait() for _ in range(20)]
    assert all(wait.blocked and 0 < wait.delay <= 2 for wait in waits)
    assert f.confirm(probe) == 0
    assert f.blocked_for()[0] > 0
    f.settle(probe, OK)
    assert f.status("a").state is ProviderState.OK
    f.go()


@pytest.mark.parametrize("outcome", [OK, Rejected()])
def test_an_answer_of_any_kind_to_the_probe_closes_the_breaker(
    fleet: MakeFleet, outcome: Rejected
) -> None:
    f = fleet(provider("a"))
    half_open(f)
    f.settle(f.go(), outcome)
    assert [f.go().provider for _ in range(3)] == ["a"] * 3


def test_every_failed_probe_doubles_the_opening_up_to_five_minutes(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    trip(f)
    openings = []
    for _ in range(6):
        openings.append(f.wait().delay)
        f.advance(openings[-1] + 0.001)
        f.settle(f.go(), Failed())
    assert openings == pytest.approx([30, 60, 120, 240, 300, 300], abs=1e-3)
    f.advance(300.1)
    f.settle(f.go(), OK)
    trip(f)
    assert f.wait().delay == pytest.approx(30, abs=1e-3)


def test_a_killed_prober_does_not_keep_the_next_from_probing(fleet: MakeFleet) -> None:
    f = fleet(provider("a", timeout_s=600))
    half_open(f)
    dead = f.go()
    f.advance(14)
    f.wait()
    f.advance(1.1)
    probe = f.go()
    f.settle(dead, Failed())
    f.settle(probe, OK)
    assert f.status("a").state is ProviderState.OK


@pytest.mark.parametrize("outcome", [Abandoned(), GivenUp(), RateLimited(retry_after=0.5)])
def test_a_probe_that_tells_nothing_lets_the_next_call_probe(
    fleet: MakeFleet, outcome: Abandoned
) -> None:
    f = fleet(provider("a"))
    half_open(f)
    f.settle(f.go(), outcome)
    f.advance(1)
    assert f.status("a").state is ProviderState.HALF_OPEN
    f.go()
    f.wait()


def test_a_probe_that_is_rate_limited_blocks_for_as_long(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    half_open(f)
    f.settle(f.go(), RateLimited(retry_after=40))
    wait = f.wait()
    assert wait.delay == pytest.approx(40, abs=1e-3)
    assert wait.reason == "a: rate limited"


@pytest.mark.parametrize("late", [OK, Failed(), Rejected(), Disabled(reason="late")])
def test_outcomes_of_calls_sent_before_the_opening_change_nothing(
    fleet: MakeFleet, late: Failed
) -> None:
    f = fleet(provider("a"))
    early = [f.go() for _ in range(18)]
    trip(f)
    for go in early[:6]:
        f.settle(go, late)
    assert f.wait().delay == pytest.approx(30, abs=1e-3)
    f.advance(30.1)
    probe = f.go()
    for go in early[6:12]:
        f.settle(go, late)
    assert isinstance(f.admit(), Wait)
    assert f.status("a").state is ProviderState.HALF_OPEN
    f.settle(probe, OK)
    for go in early[12:]:
        f.settle(go, late)
    assert f.status("a").state is ProviderState.OK


def test_a_retry_after_counts_however_late_it_comes(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    early = f.go()
    trip(f)
    f.settle(early, RateLimited(retry_after=50))
    assert f.wait().delay == pytest.approx(50, abs=1e-3)


def test_a_refused_key_takes_the_provider_out_until_one_probe_succeeds(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    f.settle(f.go(), Disabled(reason="the key\nis not accepted"))
    wait = f.wait()
    assert (wait.reason, wait.blocked) == ("a: the key is not accepted", True)
    assert wait.delay == pytest.approx(60, abs=1e-3)
    assert f.status("a").state is ProviderState.DISABLED
    f.advance(60.1)
    f.settle(f.go(), Disabled(reason="still"))
    assert f.wait().delay == pytest.approx(60, abs=1e-3)
    f.advance(60.1)
    probe = f.go()
    f.wait()
    f.settle(probe, OK)
    assert f.status("a").state is ProviderState.OK


def test_a_failure_may_name_a_time_too(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    f.settle(f.go(), Failed(retry_after=15))
    assert f.wait().delay == pytest.approx(15, abs=1e-3)
