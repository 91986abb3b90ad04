"""Never above the limit, in every dimension and every window; never starving; charged once."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet import START, Fleet, provider
from support.valkey import Valkey

from llmtasks.admission import Abandoned, Go, RateLimited, Rejected, Succeeded
from llmtasks.admission.limits import costs, per_minute
from llmtasks.errors import DocumentTooLarge
from llmtasks.messages import Usage

MakeFleet = Callable[..., Fleet]

#: Six digits are kept of every time: so much of a second may be gained per grant.
ROUNDING_S = 2e-6

LIMITS = st.one_of(
    st.fixed_dictionaries(
        {"requests_per_minute": st.sampled_from([3.0, 30.0, 500.0])},
        optional={"tokens_per_minute": st.sampled_from([600.0, 10_000.0, 150_000.0])},
    ),
    st.fixed_dictionaries(
        {
            "input_tokens_per_minute": st.sampled_from([600.0, 20_000.0]),
            "output_tokens_per_minute": st.sampled_from([400.0, 8_000.0]),
        },
        optional={"requests_per_minute": st.sampled_from([20.0, 1000.0])},
    ),
)
BURST = st.sampled_from([0.0, 0.8, 3.0])
STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 120)),  # seconds that pass
        st.integers(1, 600),  # input tokens
        st.integers(0, 400),  # output tokens
        st.sampled_from([None, None, None, "blocked", "rejected"]),
    ),
    min_size=1,
    max_size=60,
)


def worst_excess(grants: list[tuple[float, float]], limit: float, burst: float) -> float:
    """By how many units the worst window is above the bound; grants are (time, units)."""
    grants = sorted(grants)
    largest = max(units for _, units in grants)
    allowance = max(burst, largest * 60 / limit)
    sums = [0.0, *itertools.accumulate(units for _, units in grants)]
    worst = -float("inf")
    for i, (first, _) in enumerate(grants):
        for j in range(i, len(grants)):
            window = grants[j][0] - first
            bound = limit * (window + allowance + ROUNDING_S * (j - i + 2)) / 60
            worst = max(worst, sums[j + 1] - sums[i] - bound)
    return worst


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(limits=st.lists(LIMITS, min_size=1, max_size=2), burst=BURST, steps=STEPS)
def test_no_window_in_any_dimension_exceeds_the_limit(
    valkey: Valkey, limits: list[dict[str, float]], burst: float, steps: list[Any]
) -> None:
    providers = [provider(f"p{i}", burst_s=burst, **one) for i, one in enumerate(limits)]
    fleet = Fleet(valkey.url, providers)
    granted: dict[str, list[tuple[float, tuple[float, ...]]]] = {p.name: [] for p in providers}
    blocked_until = dict.fromkeys(granted, 0.0)
    try:
        for seconds, input_tokens, output_tokens, outcome in steps:
            fleet.advance(seconds)
            try:
                decision = fleet.admit(tokens=(input_tokens, output_tokens))
            except DocumentTooLarge:
                continue
            if not isinstance(decision, Go):
                continue
            start = fleet.now + decision.delay
            assert start >= blocked_until[decision.provider] - ROUNDING_S
            granted[decision.provider].append((start, costs(input_tokens, output_tokens)))
            if outcome == "blocked":
                fleet.settle(decision, RateLimited(retry_after=4.0))
                blocked_until[decision.provider] = fleet.now + 4.0
            elif outcome == "rejected":
                fleet.settle(decision, Rejected())
    finally:
        fleet.close()
    for one in providers:
        for d, limit in enumerate(per_minute(one)):
            grants = [(start, cost[d]) for start, cost in granted[one.name]]
            if limit is not None and grants:
                assert worst_excess(grants, limit, burst) <= 1e-6


def test_a_backlog_uses_the_whole_quota(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0.8))
    total = 0
    while f.now < START + 60:
        decision = f.admit(tokens=(300, 100))
        if isinstance(decision, Go):
            total += 400
        else:
            f.advance(decision.delay)
    horizon = 5 * 1000
    assert 60_000 * 0.99 <= total <= 60_000 + horizon + 0.8 * 1000 + 400


def test_nothing_is_promised_further_ahead_than_the_horizon(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=6000, burst_s=0))
    delays = []
    while isinstance(decision := f.admit(tokens=(100, 0)), Go):
        delays.append(decision.delay)
    assert delays == pytest.approx([0, 1, 2, 3, 4, 5], abs=1e-5)
    assert 1.0 - 1e-5 <= decision.delay <= 1.5
    assert (decision.reason, decision.blocked) == ("behind others", False)


def test_a_refusal_leaves_every_byte_as_it_was(fleet: MakeFleet) -> None:
    f = fleet(
        provider("a", requests_per_minute=60_000, tokens_per_minute=600, max_concurrency=50),
        provider("b", output_tokens_per_minute=600, requests_per_minute=60_000, weight=0.3),
    )
    while isinstance(f.admit(tokens=(50, 50)), Go):
        pass
    before = f.state()
    for number in range(200):
        f.advance(0.0001)
        f.wait(tokens=(number % 60 + 1, 10), key="k" if number % 2 else None)
    assert f.state() == before


def test_a_replayed_claim_gets_the_same_grant_and_is_charged_once(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=6000, burst_s=0, max_concurrency=5), provider("b"))
    f.go(providers=("a",), tokens=(100, 100))
    claim = f.claim(providers=("a",), tokens=(100, 0))
    first = f.go(claim)
    before = f.state()
    assert f.go(claim) == first
    assert f.state() == before
    f.advance(0.5)
    again = f.go(claim)
    assert again.delay == pytest.approx(first.delay - 0.5, abs=1e-5)
    assert f.state() == before


def test_a_replayed_settlement_gives_back_once(fleet: MakeFleet) -> None:
    f = fleet(provider("a", kind="anthropic", output_tokens_per_minute=6000, burst_s=0))
    go = f.go(tokens=(10, 400))
    f.go(tokens=(10, 100))
    outcome = Succeeded(usage=Usage(input_tokens=10, output_tokens=100))
    ahead = []
    for _ in range(5):
        f.settle(go, outcome)
        ahead.append(f.status("a").dimensions[0].ahead_s)
    assert ahead == pytest.approx([2.0] * 5, abs=1e-4)


def test_giving_back_never_saves_up_more_than_the_burst(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=6000, burst_s=1))
    grants = [f.go(tokens=(50, 50)) for _ in range(4)]
    f.advance(30)
    for go in grants:
        f.settle(go, Abandoned())
    at_once = [d for d in (f.admit(tokens=(10, 0)) for _ in range(30)) if d.delay == 0]
    assert len(at_once) == 10


def test_an_abandoned_call_gives_back_every_dimension_and_its_slot(fleet: MakeFleet) -> None:
    f = fleet(
        provider("a", requests_per_minute=10, tokens_per_minute=600, max_concurrency=1, burst_s=0)
    )
    go = f.go(tokens=(300, 0))
    assert [d.ahead_s for d in f.status("a").dimensions] == pytest.approx([6, 30], abs=1e-4)
    f.settle(go, Abandoned())
    assert [d.ahead_s for d in f.status("a").dimensions] == pytest.approx([0, 0], abs=1e-4)
    assert f.go(tokens=(300, 0)).delay == 0


def test_more_output_than_reserved_delays_those_who_come_later(fleet: MakeFleet) -> None:
    f = fleet(provider("a", kind="anthropic", output_tokens_per_minute=6000, burst_s=0))
    f.settle(f.go(tokens=(1, 100)), Succeeded(usage=Usage(input_tokens=1, output_tokens=400)))
    assert f.go(tokens=(1, 100)).delay == pytest.approx(4.0, abs=1e-4)


def test_a_settlement_without_its_grant_gives_nothing_back(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=6000, burst_s=0))
    go = f.go(tokens=(200, 0))
    f.command("DEL", f"{f.prefix}:{{llm}}:a:{go.attempt_id}")
    f.settle(go, Abandoned())
    assert f.status("a").dimensions[0].ahead_s == pytest.approx(2.0, abs=1e-4)


def test_a_server_that_lost_everything_grants_the_burst_and_no_more(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=3))
    for _ in range(5):
        f.go()
    f.advance(3600)
    for key in f.state():
        f.command("DEL", key)
    assert [f.go().delay for _ in range(5)] == pytest.approx([0, 0, 0, 1, 2], abs=1e-5)


def test_a_clock_that_steps_back_grants_nothing_twice(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    assert [f.go().delay for _ in range(3)] == pytest.approx([0, 1, 2], abs=1e-5)
    f.advance(-30)
    assert f.go().delay == pytest.approx(3, abs=1e-5)


def test_a_clock_that_was_an_hour_ahead_does_not_stop_the_fleet(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0, max_concurrency=1))
    f.advance(3600)
    f.go()
    f.advance(-3600)
    assert f.go().delay == 0


def test_calls_twenty_times_as_large_get_their_turn(fleet: MakeFleet) -> None:
    """Small jobs that ask again and again must not keep the large ones out."""
    random.seed(7)  # waits are spread by chance
    f = fleet(provider("a", tokens_per_minute=60_000, burst_s=0.8))
    small, large = 200, 4000
    sizes = [small] * 40 + [large] * 2
    waiting = [(START + number / 100, number) for number in range(len(sizes))]
    served = [0] * len(sizes)
    while (time := waiting[0][0]) < START + 120:
        number = waiting[0][1]
        f.set_clock(time)
        decision = f.admit(tokens=(sizes[number], 0))
        again = time + decision.delay
        if isinstance(decision, Go):
            served[number] += 1
            again += 1.0  # the call itself
        heapq.heapreplace(waiting, (again, number))
    each_small, each_large = sum(served[:40]) / 40, sum(served[40:]) / 2
    assert each_large >= 0.4 * each_small, served


@pytest.mark.parametrize(("weights", "shares"), [((0.7, 0.3), (700, 300)), ((2, 1), (667, 333))])
def test_weights_are_exact_over_a_thousand_calls(
    fleet: MakeFleet, weights: tuple[float, float], shares: tuple[int, int]
) -> None:
    f = fleet(provider("a", weight=weights[0]), provider("b", weight=weights[1]))
    counts = {"a": 0, "b": 0}
    for number in range(1, 1001):
        counts[f.go().provider] += 1
        assert abs(counts["a"] - number * weights[0] / sum(weights)) <= 1
    assert abs(counts["a"] - shares[0]) <= 1
    assert abs(counts["b"] - shares[1]) <= 1


def test_a_standby_serves_only_when_no_weighted_one_can(fleet: MakeFleet) -> None:
    f = fleet(provider("main", requests_per_minute=60, burst_s=0), provider("spare", weight=0))
    served = [f.go().provider for _ in range(8)]
    assert served == ["main"] * 6 + ["spare"] * 2


def test_a_much_later_start_loses_its_turn_to_a_free_provider(fleet: MakeFleet) -> None:
    f = fleet(provider("slow", requests_per_minute=20, burst_s=0), provider("free", weight=0.01))
    served = [f.go().provider for _ in range(10)]
    assert served == ["slow"] + ["free"] * 9


def test_a_tried_provider_is_chosen_only_when_no_other_can_go(fleet: MakeFleet) -> None:
    f = fleet(provider("a"), provider("b", requests_per_minute=60, burst_s=0))
    served = [f.go(tried=("a",)).provider for _ in range(8)]
    assert served == ["b"] * 6 + ["a"] * 2


def test_slots_are_bounded_and_come_back(fleet: MakeFleet) -> None:
    f = fleet(provider("a", max_concurrency=2, timeout_s=60))
    first, second = f.go(), f.go()
    assert f.status("a").in_flight == 2
    assert not f.wait().blocked
    f.settle(first, Rejected())
    f.go()
    f.wait()
    assert second.provider == "a"


def test_a_crashed_holder_s_slot_comes_back_when_its_lease_ends(fleet: MakeFleet) -> None:
    f = fleet(provider("a", max_concurrency=1, timeout_s=60))
    f.go()
    f.advance(89.9)
    f.wait()
    f.advance(0.2)
    f.go()
    f.wait()
