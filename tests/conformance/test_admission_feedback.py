"""What calls teach the fleet: the limit that is really there, a failing provider, wrong estimates."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import msgspec
import pytest
from support.callers import Callers, Job
from support.fleet import START, Fleet, provider

from llmtasks.admission import (
    Abandoned,
    Failed,
    Go,
    ProviderState,
    RateLimited,
    Rejected,
    Succeeded,
)
from llmtasks.messages import StatedLimits, Usage
from llmtasks.simulator.quota import Bucket

MakeFleet = Callable[..., Fleet]

OK = Succeeded(usage=None)
TOO_MANY = RateLimited(retry_after=0.1)


def answered(tokens: int) -> Succeeded:
    return Succeeded(usage=Usage(input_tokens=tokens, output_tokens=0))


def ratio(f: Fleet) -> float:
    return f.status("a").effective_ratio


def reopened(f: Fleet) -> None:
    """The breaker has opened, and a probe has closed it again."""
    while f.status("a").state is ProviderState.OK:
        f.settle(f.go(), Failed())
    f.advance(30.1)
    f.settle(f.go(), OK)


# --- the limit that is really there ------------------------------------------------------------------


def test_a_provider_that_takes_what_was_configured_gets_all_of_it(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60))
    for outcome in (OK, Rejected(), Failed(), Abandoned()):
        f.settle(f.go(), outcome)
    assert ratio(f) == 1


def test_a_rate_limit_slows_the_whole_fleet_down_by_a_fifth(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    f.settle(f.go(), TOO_MANY)
    assert ratio(f) == pytest.approx(0.8, abs=1e-5)
    f.advance(10)
    paced = [f.go().delay for _ in range(4)]
    steps = [later - sooner for sooner, later in itertools.pairwise(paced)]
    assert steps == pytest.approx([1 / ratio(f)] * 3, abs=1e-4)


def test_calls_of_the_pace_before_do_not_slow_down_twice(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=600, burst_s=3))
    calls = [f.go() for _ in range(20)]
    for go in calls:
        f.settle(go, TOO_MANY)
    assert ratio(f) == pytest.approx(0.8, abs=1e-5)
    f.advance(0.2)
    go = f.go()
    f.advance(0.2)
    f.settle(go, TOO_MANY)
    assert ratio(f) == pytest.approx(0.64, abs=1e-2)


def test_the_pace_grows_back_quickly_then_carefully_then_quickly(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60))
    f.settle(f.go(), TOO_MANY)
    shares = []
    for _ in range(26):
        shares.append(ratio(f))
        f.advance(10)
    assert shares == sorted(shares)
    steps = [later - sooner for sooner, later in itertools.pairwise(shares)]
    assert steps[0] > 0.03
    assert min(steps[5:12]) < 0.002
    assert shares[-1] == 1


def test_a_provider_that_takes_next_to_nothing_is_still_asked(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=6000, burst_s=0))
    for _ in range(60):
        decision = f.admit(waiter="process.one")
        if isinstance(decision, Go):
            f.settle(decision, TOO_MANY)
        f.advance(1)
    assert ratio(f) >= 0.02
    f.advance(600)
    assert ratio(f) == 1


def test_half_of_the_limit_is_found_used_and_left_again(fleet: MakeFleet) -> None:
    """The provider enforces a part of what it was configured with, and the whole again later."""
    limit, share, restored = 300, 0.5, 200
    f = fleet(provider("a", requests_per_minute=limit, burst_s=0.8))
    bucket = Bucket(per_minute=limit * share, burst_s=1)
    answers: list[float] = []
    refusals: list[float] = []
    rng = random.Random(3)

    def answer(_: Job) -> tuple[float, Succeeded | RateLimited]:
        nonlocal bucket
        if (wait := bucket.wait(1, f.now)) > 0:
            refusals.append(f.now - START)
            return 0.02, RateLimited(retry_after=wait)
        bucket = bucket.charged(1, f.now)
        answers.append(f.now - START)
        return rng.uniform(1, 4), OK

    def restore() -> None:
        nonlocal bucket
        bucket = msgspec.structs.replace(
            bucket, per_minute=limit, debt=bucket.owed(f.now), at=f.now
        )

    callers = Callers(f, answer)
    callers.slots(24, iter(lambda: Job(tokens=(1, 0)), None))
    callers.at(START + restored, restore)
    callers.run(START + restored + 300)

    def during(times: list[float], first: float, last: float) -> int:
        return sum(first <= time < last for time in times)

    used = during(answers, 60, restored) / ((restored - 60) * limit * share / 60)
    assert used >= 0.9
    refused = during(refusals, 60, restored)
    assert refused < 0.02 * (refused + during(answers, 60, restored))
    end = restored + 300
    assert during(answers, end - 30, end) >= 0.95 * limit / 2
    assert len(callers.granted) >= len(answers)


# --- limits that the provider states -----------------------------------------------------------------


def told(**limits: float) -> Succeeded:
    return Succeeded(usage=None, limits=StatedLimits(**limits))


def steps_of(f: Fleet, count: int, tokens: tuple[int, int] = (1, 0)) -> list[float]:
    """Seconds between grants that follow each other, in a backlog."""
    paced = [f.go(tokens=tokens).delay for _ in range(count)]
    return [later - sooner for sooner, later in itertools.pairwise(paced)]


def test_a_lower_limit_that_is_stated_holds_for_the_whole_fleet_at_once(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    f.settle(f.go(), told(requests=30))
    assert ratio(f) == pytest.approx(0.5)
    f.advance(10)
    assert steps_of(f, 3) == pytest.approx([2, 2], abs=1e-4)


@pytest.mark.parametrize("requests", [60, 61, 500, 86_400])
def test_a_stated_limit_never_raises_the_pace_and_costs_no_bookkeeping(
    fleet: MakeFleet, requests: float
) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    for _ in range(20):
        f.settle(f.go(), OK)
        f.advance(1)
    calls = [f.go() for _ in range(3)]
    state = f.command("DUMP", f"{f.prefix}:{{llm}}:p:a")
    for go in calls:
        f.settle(go, told(requests=requests, tokens=5, input_tokens=5))
    assert f.command("DUMP", f"{f.prefix}:{{llm}}:p:a") == state
    assert ratio(f) == 1


def test_a_stated_limit_is_followed_upwards_as_far_as_what_is_configured(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=6000, burst_s=0))
    shares = []
    for requests in (600, 3000, 1500, 6000, 9000, 3000):
        f.settle(f.go(), told(requests=requests))
        shares.append(ratio(f))
        f.advance(1)
    assert shares == pytest.approx([0.1, 0.5, 0.25, 1, 1, 0.5])


def test_what_a_late_answer_states_does_not_overwrite_what_is_known_since(
    fleet: MakeFleet,
) -> None:
    f = fleet(provider("a", requests_per_minute=6000, burst_s=0))
    first = f.go()
    f.advance(1)
    second = f.go()
    f.advance(1)
    third = f.go()
    f.settle(second, told(requests=3000))
    f.settle(first, told(requests=600))
    assert ratio(f) == pytest.approx(0.5)
    f.settle(third, told(requests=6000))
    assert ratio(f) == 1


def test_confirming_a_stated_limit_counts_as_news(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=6000, burst_s=0))
    f.settle(f.go(), told(requests=3000))
    f.advance(1)
    early = f.go()
    f.advance(1)
    f.settle(f.go(), told(requests=3000))
    f.settle(early, told(requests=6000))
    assert ratio(f) == pytest.approx(0.5)


def test_a_limit_that_is_not_stated_any_more_is_forgotten(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=6000, tokens_per_minute=60_000, burst_s=0))
    f.settle(f.go(), told(requests=3000))
    f.advance(599)
    f.settle(f.go(), told(tokens=60_000))
    assert ratio(f) == pytest.approx(0.5)
    f.advance(601)
    assert ratio(f) == 1
    f.settle(f.go(), told(tokens=30_000))
    f.advance(10)
    assert steps_of(f, 3) == pytest.approx([0.01] * 2, abs=1e-4)


def test_each_limit_is_lowered_by_what_is_stated_of_it_alone(fleet: MakeFleet) -> None:
    """A fifth of the requests would do for these calls; their tokens are not slowed down."""
    f = fleet(provider("a", requests_per_minute=6000, tokens_per_minute=60_000, burst_s=0))
    f.settle(f.go(), told(requests=1200, tokens=60_000))
    f.advance(10)
    assert steps_of(f, 4, tokens=(500, 500)) == pytest.approx([1] * 3, abs=1e-4)


def test_what_is_given_back_is_what_was_reserved_at_the_stated_pace(fleet: MakeFleet) -> None:
    f = fleet(
        provider(
            "a",
            kind="anthropic",
            requests_per_minute=60,
            input_tokens_per_minute=6000,
            output_tokens_per_minute=6000,
            burst_s=0,
        )
    )
    f.settle(f.go(), told(requests=30, input_tokens=6000, output_tokens=1500))
    f.advance(100)
    go = f.go(tokens=(300, 200))
    assert ahead(f) == pytest.approx([2, 3, 8], abs=1e-4)
    f.settle(go, told(requests=60, input_tokens=6000, output_tokens=6000))
    assert ahead(f) == pytest.approx([2, 3, 8], abs=1e-4)
    f.advance(100)
    f.settle(f.go(), told(requests=30, input_tokens=6000, output_tokens=1500))
    f.advance(100)
    go = f.go(tokens=(300, 200))
    f.settle(go, Succeeded(usage=Usage(input_tokens=200, output_tokens=50)))
    assert ahead(f) == pytest.approx([2, 2, 2], abs=1e-4)


def ahead(f: Fleet) -> list[float]:
    return [d.ahead_s for d in f.status("a").dimensions]


def test_a_refusal_that_states_the_limit_lowers_to_it_and_no_further(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    f.settle(f.go(), RateLimited(retry_after=0.1, limits=StatedLimits(requests=30)))
    assert ratio(f) == pytest.approx(0.5)
    f.advance(10)
    f.settle(f.go(), TOO_MANY)
    assert ratio(f) == pytest.approx(0.4, abs=1e-4)


def test_an_absurdly_low_statement_does_not_silence_a_provider(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=6000, burst_s=0))
    f.settle(f.go(), told(requests=1))
    assert ratio(f) == pytest.approx(0.02)


# --- coming back -------------------------------------------------------------------------------------


def test_a_provider_that_comes_back_is_used_more_and_more(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=600, burst_s=0, max_concurrency=100))
    reopened(f)
    shares = []
    for _ in range(6):
        shares.append(ratio(f))
        f.advance(2)
    assert shares == pytest.approx([0.1, 0.28, 0.46, 0.64, 0.82, 1.0], abs=1e-4)


def test_few_calls_go_to_a_provider_that_has_just_come_back(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=600, burst_s=0, max_concurrency=100))
    reopened(f)
    callers = Callers(f)
    since = f.now
    callers.slots(200, (Job(tokens=(1, 0)) for _ in range(400)))
    callers.run(since + 25)
    in_second = [sum(int(job.start - since) == n for job in callers.granted) for n in range(20)]
    assert in_second[0] <= 3
    assert sum(in_second[:5]) <= 0.35 * 50 + 3
    assert sum(in_second[12:20]) >= 0.95 * 80


def test_slots_of_a_provider_come_back_one_after_the_other(fleet: MakeFleet) -> None:
    f = fleet(provider("a", max_concurrency=20))
    reopened(f)
    free = []
    for _ in range(6):
        grants = []
        while isinstance(decision := f.admit(waiter="process.one"), Go):
            grants.append(decision)
        f.leave("process.one")
        free.append(len(grants))
        for go in grants:
            f.settle(go, OK)
        f.advance(2)
    assert free == [2, 5, 9, 12, 16, 20]


def test_a_provider_with_one_slot_keeps_it_while_it_comes_back(fleet: MakeFleet) -> None:
    f = fleet(provider("a", max_concurrency=1))
    reopened(f)
    f.go()


def test_a_large_call_does_not_pay_for_the_slow_start_for_ever(fleet: MakeFleet) -> None:
    """At a tenth of the pace it would reserve minutes, of which all but seconds are at the full pace."""
    f = fleet(provider("a", tokens_per_minute=60_000, burst_s=0))
    reopened(f)
    f.go(tokens=(20_000, 0))
    assert f.status("a").dimensions[0].ahead_s == pytest.approx(20 + 4.5, abs=0.1)


# --- failing often -----------------------------------------------------------------------------------


def test_a_provider_that_fails_more_often_than_not_is_given_a_rest(fleet: MakeFleet) -> None:
    """Never five in a row, and yet two calls of three are lost."""
    f = fleet(provider("a"))
    outcomes = [Failed(reason="HTTP 500"), Failed(reason="HTTP 500"), OK] * 10
    calls = 0
    while f.status("a").state is ProviderState.OK:
        f.settle(f.go(), outcomes[calls])
        calls += 1
    assert calls == 20
    assert f.wait().delay == pytest.approx(30, abs=1e-3)


def test_a_provider_that_fails_every_other_time_is_not_taken_out_soon(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    for outcome in [Failed(), OK, OK] * 40:
        f.settle(f.go(), outcome)
    assert f.status("a").state is ProviderState.OK


def test_rejected_calls_do_not_count_among_those_that_fail(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    for outcome in [Failed(), Rejected(), Rejected(), OK, OK] * 30:
        f.settle(f.go(), outcome)
    assert f.status("a").state is ProviderState.OK


def test_what_was_known_before_the_breaker_closed_is_forgotten(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    for outcome in [Failed(), Failed(), OK] * 6:
        f.settle(f.go(), outcome)
    reopened(f)
    for outcome in [Failed(), Failed(), OK] * 6:
        f.settle(f.go(), outcome)
    assert f.status("a").state is ProviderState.OK


def test_a_provider_in_health_costs_no_bookkeeping(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=6000))
    for _ in range(25):
        f.settle(f.go(), OK)
    calls = [f.go() for _ in range(5)]
    state = f.command("DUMP", f"{f.prefix}:{{llm}}:p:a")
    for go in calls:
        f.settle(go, OK)
    assert f.command("DUMP", f"{f.prefix}:{{llm}}:p:a") == state


# --- wrong estimates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("real", "learned"), [(900, 900), (1300, 1300), (100, 500), (5000, 2000)])
def test_estimates_are_corrected_by_what_they_turn_out_to_be(
    fleet: MakeFleet, real: int, learned: int
) -> None:
    f = fleet(provider("a", tokens_per_minute=10_000_000))
    for _ in range(400):
        f.settle(f.go(tokens=(1000, 50), exact=False), answered(real))
    go = f.go(tokens=(1000, 50), exact=False)
    assert go.input_tokens == pytest.approx(learned, rel=0.01)
    assert go.output_tokens == 50


def test_large_calls_weigh_what_they_take_in_what_is_learned(fleet: MakeFleet) -> None:
    """One call in ten has ten times the tokens and fewer of them than estimated."""
    f = fleet(provider("a", tokens_per_minute=100_000_000))
    for n in range(600):
        estimated, real = (10_000, 8000) if n % 10 == 0 else (1000, 1100)
        f.settle(f.go(tokens=(estimated, 0), exact=False), answered(real))
    reserved = 9 * f.go(tokens=(1000, 0), exact=False).input_tokens
    reserved += f.go(tokens=(10_000, 0), exact=False).input_tokens
    assert reserved == pytest.approx(9 * 1100 + 8000, rel=0.02)


def test_counted_tokens_are_reserved_as_they_are(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=10_000_000))
    for _ in range(200):
        f.settle(f.go(tokens=(1000, 50), exact=False), answered(800))
        f.settle(f.go(tokens=(1000, 50)), answered(2000))
    assert f.go(tokens=(1000, 50)).input_tokens == 1000
    assert f.go(tokens=(1000, 50), exact=False).input_tokens == pytest.approx(800, abs=10)


def test_one_wild_answer_does_not_spoil_the_estimates(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=10_000_000))
    f.settle(f.go(tokens=(10, 0), exact=False), answered(1_000_000))
    assert f.go(tokens=(1000, 0), exact=False).input_tokens <= 1050


def test_an_abandoned_estimate_gives_back_what_was_reserved_for_it(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=60_000, burst_s=0))
    for _ in range(100):
        f.settle(f.go(tokens=(1000, 0), exact=False), answered(1400))
        f.advance(2)
    f.settle(f.go(tokens=(1000, 0), exact=False), Abandoned())
    assert f.status("a").dimensions[0].ahead_s == pytest.approx(0, abs=1e-3)


def test_high_estimates_do_not_cost_quota(fleet: MakeFleet) -> None:
    """Ten per cent too many tokens in every estimate: all of the quota is used, and no more."""
    limit = 60_000
    f = fleet(provider("a", tokens_per_minute=limit, burst_s=0.8))
    rng = random.Random(4)

    def answer(job: Job) -> tuple[float, Succeeded]:
        return 1.0, answered(round(job.tokens[0] / 1.1 * job.error))

    callers = Callers(f, answer)

    def job() -> Job:
        return Job(tokens=(rng.randint(200, 1000), 0), exact=False, error=rng.uniform(0.9, 1.1))

    callers.slots(30, iter(job, None))
    callers.run(START + 180)
    late = [j for j in callers.granted if START + 100 <= j.start < START + 160]
    used = sum(j.tokens[0] / 1.1 * j.error for j in late)
    assert 0.98 * limit <= used <= 1.02 * limit + 1000


# --- how they stand ----------------------------------------------------------------------------------


def test_the_status_says_how_many_wait_and_at_what_pace(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    assert (f.status("a").waiting, f.status("a").effective_ratio) == (0, 1.0)
    f.settle(f.go(), TOO_MANY)
    f.advance(1)
    while isinstance(f.admit(waiter="process.one"), Go):
        pass
    f.wait(waiter="process.two")
    status = f.status("a")
    assert status.waiting == 2
    assert 0.8 <= status.effective_ratio < 0.82
    assert status.state is ProviderState.OK
