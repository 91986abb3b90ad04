"""Never above the limit, in every dimension and every window; never starving; charged once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.callers import Callers, Job, copies
from support.fleet import START, Fleet, provider
from support.valkey import Valkey
from support.windows import LIMITS, ROUNDING_S, worst_excess

from llmtasks.admission import (
    Abandoned,
    Claim,
    Go,
    Outcome,
    RateLimited,
    Rejected,
    Succeeded,
    Wait,
)
from llmtasks.admission.limits import costs, per_minute
from llmtasks.errors import DocumentTooLarge
from llmtasks.messages import StatedLimits, Usage
from llmtasks.settings import Provider

MakeFleet = Callable[..., Fleet]

HORIZON_S = 5.0

BURST = st.sampled_from([0.0, 0.8, 3.0])
STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 120)),  # seconds that pass
        st.integers(1, 600),  # input tokens
        st.integers(0, 400),  # output tokens
        st.sampled_from([None, None, None, "blocked", "rejected", 0.3, 1.0]),  # or share stated
    ),
    min_size=1,
    max_size=60,
)


#: What a provider states, in the order of the dimensions.
STATED = ("requests", "tokens", "input_tokens", "output_tokens")


def states(one: Provider, share: float) -> StatedLimits:
    """A share of every limit that is configured."""
    limits = zip(STATED, per_minute(one), strict=True)
    return StatedLimits(**{name: share * limit for name, limit in limits if limit is not None})


def ended(one: Provider, outcome: str | float) -> Outcome:
    """How a call of the steps above ends."""
    if outcome == "blocked":
        return RateLimited(retry_after=4.0)
    if isinstance(outcome, float):
        return Succeeded(usage=None, limits=states(one, outcome))
    return Rejected()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(limits=st.lists(LIMITS, min_size=1, max_size=2), burst=BURST, steps=STEPS)
def test_no_window_in_any_dimension_exceeds_the_limit_of_its_time(
    valkey: Valkey, limits: list[dict[str, float]], burst: float, steps: list[Any]
) -> None:
    """Also while calls wait in the line, and at the lower pace that a rate limit leaves or headers state."""
    providers = [provider(f"p{i}", burst_s=burst, **one) for i, one in enumerate(limits)]
    fleet = Fleet(valkey.url, providers)
    granted: dict[str, list[tuple[float, float, tuple[float, ...]]]] = {
        p.name: [] for p in providers
    }
    blocked_until = dict.fromkeys(granted, 0.0)
    waiting: list[Claim] = []
    try:
        for seconds, input_tokens, output_tokens, outcome in steps:
            fleet.advance(seconds)
            # Those who wait ask again, in some order of their own.
            claims = [*waiting, fleet.claim(tokens=(input_tokens, output_tokens))]
            waiting = []
            for claim in claims:
                pace = {p.name: fleet.status(p.name).effective_ratio for p in providers}
                try:
                    decision = fleet.admit(claim)
                except DocumentTooLarge:
                    continue
                if not isinstance(decision, Go):
                    waiting.append(claim)
                    continue
                start = fleet.now + decision.delay
                assert start >= blocked_until[decision.provider] - ROUNDING_S
                units = costs(claim.input_tokens, claim.output_tokens)
                granted[decision.provider].append((start, pace[decision.provider], units))
                if outcome == "blocked":
                    blocked_until[decision.provider] = fleet.now + 4.0
                if outcome is not None:
                    (one,) = (p for p in providers if p.name == decision.provider)
                    fleet.settle(decision, ended(one, outcome))
    finally:
        fleet.close()
    for one in providers:
        for d, limit in enumerate(per_minute(one)):
            if limit is not None and granted[one.name]:
                grants = [
                    (start, units[d] * 60 / limit / pace)
                    for start, pace, units in granted[one.name]
                ]
                assert worst_excess(grants, burst) <= 1e-5


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    burst=BURST,
    steps=st.lists(
        st.tuples(
            st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 90)),  # seconds that pass
            st.integers(1, 600),  # reserved output tokens
            st.one_of(st.none(), st.integers(0, 3000)),  # real ones of the oldest call under way
        ),
        min_size=1,
        max_size=60,
    ),
)
def test_no_window_exceeds_the_limit_by_more_than_was_given_back(
    valkey: Valkey, burst: float, steps: list[Any]
) -> None:
    """What is given back is granted again, once; what is owed is waited for.

    Promises stand while quota comes back, so the horizon's worth may come on top.
    """
    limit = 6000
    one = provider("p", kind="anthropic", output_tokens_per_minute=limit, burst_s=burst)
    fleet = Fleet(valkey.url, [one])
    under_way: list[Go] = []
    granted: list[tuple[int, float, float]] = []  # its step, its start, seconds
    corrected: list[tuple[int, float, float]] = []  # its step, when, seconds
    try:
        for number, (seconds, tokens, real) in enumerate(steps):
            fleet.advance(seconds)
            decision = fleet.admit(tokens=(0, tokens), waiter="process.one")
            if isinstance(decision, Go):
                under_way.append(decision)
                granted.append((number, fleet.now + decision.delay, tokens * 60 / limit))
            if real is not None and under_way:
                go = under_way.pop(0)
                fleet.settle(go, Succeeded(usage=Usage(input_tokens=0, output_tokens=real)))
                owed = (real - go.output_tokens) * 60 / limit
                corrected.append((number, fleet.now, owed))
    finally:
        fleet.close()
    allowance = HORIZON_S + max(burst, *(length for *_, length in granted))
    for (_, first, _), (_, last, _) in itertools.product(granted, repeat=2):
        inside = [(number, length) for number, start, length in granted if first <= start <= last]
        newest = max((number for number, _ in inside), default=0)
        net = sum(length for _, length in inside) + sum(
            seconds
            for number, at, seconds in corrected
            if number < newest and first - HORIZON_S <= at
        )
        assert net <= max(0.0, last - first) + allowance + 1e-3


def test_a_backlog_uses_the_whole_quota(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0.8))
    total = 0
    claim = f.claim(tokens=(300, 100))
    while f.now < START + 60:
        decision = f.admit(claim)
        if isinstance(decision, Go):
            total += 400
            claim = f.claim(tokens=(300, 100))
        else:
            f.advance(decision.delay)
    horizon = HORIZON_S * 1000
    assert 60_000 * 0.99 <= total <= 60_000 + horizon + 0.8 * 1000 + 400


def test_nothing_is_promised_further_ahead_than_the_horizon(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=6000, burst_s=0))
    delays = []
    while isinstance(decision := f.admit(tokens=(100, 0)), Go):
        delays.append(decision.delay)
    assert delays == pytest.approx([0, 1, 2, 3, 4, 5], abs=1e-5)
    assert decision.delay == pytest.approx(1.0, abs=1e-5)
    assert (decision.reason, decision.blocked) == ("behind others", False)


def all_but_the_line(f: Fleet) -> dict[bytes, bytes]:
    return {key: value for key, value in f.state().items() if key.split(b":")[-2] not in b"lwt"}


def test_a_refusal_leaves_every_byte_but_the_line_as_it_was(fleet: MakeFleet) -> None:
    f = fleet(
        provider("a", requests_per_minute=60_000, tokens_per_minute=600, max_concurrency=50),
        provider("b", output_tokens_per_minute=600, requests_per_minute=60_000, weight=0.3),
    )
    while isinstance(f.admit(tokens=(50, 50)), Go):
        pass
    before = all_but_the_line(f)
    for number in range(200):
        f.advance(0.0001)
        claim = f.claim(tokens=(number % 60 + 1, 10), key="k" if number % 2 else None)
        f.wait(claim)
        if number % 2:
            f.leave(claim.waiter)
    assert all_but_the_line(f) == before


def test_who_is_refused_a_slot_takes_no_quota_and_keeps_none_from_the_next(
    fleet: MakeFleet,
) -> None:
    f = fleet(
        provider("a", requests_per_minute=600, tokens_per_minute=6000, max_concurrency=1),
    )
    held = f.go(tokens=(10, 10))
    before = all_but_the_line(f)
    large = f.claim(tokens=(5000, 0))
    f.wait(large)
    assert all_but_the_line(f) == before
    f.leave(large.waiter)
    assert f.state() == before
    f.settle(held, Rejected())
    assert f.go(tokens=(10, 0)).delay == 0


def test_what_can_never_go_is_told_at_once_and_stops_nobody(fleet: MakeFleet) -> None:
    f = fleet(
        provider("small", tokens_per_minute=600, max_concurrency=1),
        provider("large", tokens_per_minute=60_000, context_window=8000),
    )
    before = f.state()
    for claim in (f.claim(tokens=(9000, 0)), f.claim(tokens=(500, 101), providers=("small",))):
        with pytest.raises(DocumentTooLarge):
            f.admit(claim)
    assert f.state() == before
    assert f.go(tokens=(601, 0)).provider == "large"
    assert f.go(tokens=(600, 0), providers=("small",)).delay == 0


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


def test_what_half_of_a_fleet_gives_back_is_not_granted_on_top_of_what_stands(
    fleet: MakeFleet,
) -> None:
    """A worker that is stopped returns its grants; those of the others keep their times."""
    f = fleet(provider("p", requests_per_minute=600, burst_s=0))
    grants = [(f.now + (go := f.go()).delay, go) for _ in range(51)]
    for _, go in grants[:25]:
        f.settle(go, Abandoned())
    starts = [start for start, _ in grants[25:]]
    while isinstance(decision := f.admit(waiter="process.next"), Go):
        starts.append(f.now + decision.delay)
    assert worst_excess([(start, 0.1) for start in starts], 0) <= 1e-3


def test_more_output_than_reserved_delays_those_who_come_later(fleet: MakeFleet) -> None:
    f = fleet(provider("a", kind="anthropic", output_tokens_per_minute=6000, burst_s=0))
    f.settle(f.go(tokens=(1, 100)), Succeeded(usage=Usage(input_tokens=1, output_tokens=400)))
    assert f.go(tokens=(1, 100)).delay == pytest.approx(4.0, abs=1e-4)


def test_a_debt_is_paid_before_anybody_else_calls(fleet: MakeFleet) -> None:
    """200 tokens reserved, 1500 used of 1000 a minute: a minute and a half for nobody."""
    f = fleet(provider("a", kind="anthropic", output_tokens_per_minute=1000, burst_s=0))
    f.settle(f.go(tokens=(1, 200)), Succeeded(usage=Usage(input_tokens=1, output_tokens=1500)))
    wait = f.wait(tokens=(1, 1), waiter="process.next")
    assert wait.delay == pytest.approx(90 - HORIZON_S, abs=1e-3)
    f.advance(wait.delay - 0.01)
    f.wait(tokens=(1, 1), waiter="process.next")
    f.advance(0.01)
    assert f.go(tokens=(1, 1), waiter="process.next").delay == pytest.approx(HORIZON_S, abs=1e-3)


def test_a_late_settlement_gives_nothing_back_that_nobody_waits_for(fleet: MakeFleet) -> None:
    """900 of 1000 tokens reserved, 100 used, told after 90 seconds: quota of the past is gone."""
    f = fleet(provider("a", kind="anthropic", output_tokens_per_minute=1000, burst_s=3))
    go = f.go(tokens=(1, 900))
    f.advance(90)
    f.settle(go, Succeeded(usage=Usage(input_tokens=1, output_tokens=100)))
    (dimension,) = f.status("a").dimensions
    assert dimension.ahead_s == 0
    # Of a task that nothing is known of.
    delays = [f.go(tokens=(1, 25), task="translate").delay for _ in range(4)]
    assert delays == pytest.approx([0, 0, 1.5, 3], abs=1e-3)


def test_a_late_settlement_adds_no_more_than_the_horizon_to_a_backlog(fleet: MakeFleet) -> None:
    """The same among others that wait: what was promised to them already stands, to its last call."""
    f = fleet(provider("a", kind="anthropic", output_tokens_per_minute=1000, burst_s=1))

    def answer(job: Job) -> tuple[float, Succeeded]:
        late = job.tokens[1] == 900
        usage = Usage(input_tokens=0, output_tokens=100 if late else job.tokens[1])
        return (90.0 if late else 1.0), Succeeded(usage=usage)

    callers = Callers(f, answer)
    callers.start(Job(tokens=(0, 900)))
    callers.slots(40, copies(Job(tokens=(0, 50)), 1000))
    callers.run(START + 240)
    grants = [(job.start, job.tokens[1] * 0.06) for job in callers.granted]
    later = [(start, seconds) for start, seconds in grants if start >= START + 90]
    assert sum(seconds for _, seconds in later) >= 0.98 * 150
    assert worst_excess(later, 1.0) <= HORIZON_S + 3 + 1e-3


def test_what_is_given_back_is_granted_once_more_and_no_oftener(fleet: MakeFleet) -> None:
    """Half of what is reserved is used: all of the quota is, and no more of it."""
    f = fleet(provider("a", kind="anthropic", output_tokens_per_minute=60_000, burst_s=0.8))
    half = Succeeded(usage=Usage(input_tokens=0, output_tokens=250))
    callers = Callers(f, lambda _: (1.0, half))
    callers.slots(30, copies(Job(tokens=(0, 500)), 10_000))
    callers.run(START + 45)
    used = 250 * sum(START + 15 <= job.start < START + 45 for job in callers.granted)
    assert 0.97 * 30_000 <= used <= 30_000 + (HORIZON_S + 0.8) * 1000


def test_a_settlement_without_its_grant_gives_nothing_back(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=6000, burst_s=0))
    go = f.go(tokens=(200, 0))
    f.command("DEL", f"{f.prefix}:{{llm}}:g:{go.attempt_id}")
    f.settle(go, Abandoned())
    assert f.status("a").dimensions[0].ahead_s == pytest.approx(2.0, abs=1e-4)


def test_a_server_that_lost_everything_grants_the_burst_and_no_more(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=3))
    for _ in range(5):
        f.go()
    f.advance(3600)
    for key in f.state():
        f.command("DEL", key)
    # Not before those are through that it may have forgotten.
    assert f.go().delay == pytest.approx(5, abs=1e-5)
    f.wait(waiter="process.second")
    f.advance(5)
    delays = [f.go(waiter="process.second").delay, *(f.go().delay for _ in range(3))]
    assert delays == pytest.approx([0, 0, 1, 2], abs=1e-5)


def test_calls_under_way_when_a_server_loses_everything_are_let_pass_first(
    fleet: MakeFleet,
) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=3, max_concurrency=20))
    under_way = [f.go().delay for _ in range(6)]
    assert max(under_way) == pytest.approx(3, abs=1e-4)
    for key in f.state():
        f.command("DEL", key)
    f.wait(waiter="process.first")
    # One that had no call under way before is told by those that had.
    assert isinstance(f.admit_elsewhere(f.claim()), Wait)
    f.advance(5.1)
    assert [f.go(waiter="process.first").delay, f.go().delay] == pytest.approx([0, 0], abs=1e-4)


def test_a_fleet_that_begins_waits_for_nothing(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=3, max_concurrency=4))
    assert f.go().delay == 0


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
    f.wait(waiter="process.next")
    f.advance(5.1)
    assert f.go(waiter="process.next").delay == 0


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


def test_who_is_left_shares_by_weight_while_one_is_out(fleet: MakeFleet) -> None:
    weights = {"a": 5, "b": 3, "c": 2}
    f = fleet(*(provider(name, weight=weight) for name, weight in weights.items()))

    def served(count: int) -> dict[str, int]:
        chosen = [f.go().provider for _ in range(count)]
        return {name: chosen.count(name) for name in weights}

    assert served(300) == {"a": 150, "b": 90, "c": 60}
    f.settle(f.go(providers=("b",)), RateLimited(retry_after=60))
    assert served(210) == pytest.approx({"a": 150, "b": 0, "c": 60}, abs=1)
    f.advance(60.1)
    assert served(300) == pytest.approx({"a": 150, "b": 90, "c": 60}, abs=1)


@pytest.mark.parametrize("order", list(itertools.permutations(("a", "b", "spare"))))
def test_the_order_in_the_settings_decides_nothing(
    fleet: MakeFleet, order: tuple[str, ...]
) -> None:
    weights = {"a": 2, "b": 1, "spare": 0}
    f = fleet(*(provider(name, weight=weights[name]) for name in order))
    chosen = [f.go().provider for _ in range(30)]
    assert {name: chosen.count(name) for name in weights} == {"a": 20, "b": 10, "spare": 0}


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
    assert not f.wait(waiter="process.third").blocked
    f.settle(first, Rejected())
    f.go(waiter="process.third")
    f.wait()
    assert second.provider == "a"


def test_a_crashed_holder_s_slot_comes_back_when_its_lease_ends(fleet: MakeFleet) -> None:
    """However long its call might have lasted."""
    f = fleet(provider("a", max_concurrency=1, timeout_s=600))
    f.go()
    f.advance(14.9)
    f.wait(waiter="process.next")
    f.advance(0.2)
    f.go(waiter="process.next")
    f.wait()


def test_a_call_keeps_its_slot_for_as_long_as_its_process_lives(fleet: MakeFleet) -> None:
    f = fleet(provider("a", max_concurrency=1, timeout_s=600))
    go = f.go()
    for _ in range(20):
        f.advance(14)
        f.renew()
        f.wait(waiter="process.next")
    f.settle(go, Rejected())
    f.renew()
    assert f.status("a").in_flight == 0
    f.go(waiter="process.next")


def test_a_slot_that_ran_out_in_an_outage_is_its_call_s_again(fleet: MakeFleet) -> None:
    f = fleet(provider("a", max_concurrency=1, timeout_s=600))
    f.go()
    f.advance(60)
    f.renew()
    f.wait(waiter="process.next")
