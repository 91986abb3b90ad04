"""The line: everybody's turn comes, in order, whoever else waits, dies or asks for more."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.callers import Callers, Job, copies
from support.fleet import START, Fleet, provider
from support.valkey import Valkey

from llmtasks.admission import Abandoned, Go, RateLimited, Succeeded
from llmtasks.messages import Usage

MakeFleet = Callable[..., Fleet]

HORIZON_S = 5.0
LATE_S = 1.0

#: A wake-up call and the question after it take a moment.
MOMENT_S = 0.05


def always(make: Callable[[], Job]) -> Iterator[Job]:
    return (make() for _ in itertools.count())


def overtaken_by(jobs: list[Job]) -> float:
    """How many seconds the unluckiest job was granted after one that had come later."""
    worst, earliest = 0.0, float("inf")
    for job in sorted(jobs, key=lambda one: one.number, reverse=True):
        worst = max(worst, job.granted - earliest)
        earliest = min(earliest, job.granted)
    return worst


def line_keys(f: Fleet) -> list[bytes]:
    return [key for kind in "lwt" for key in f.command("KEYS", f"{f.prefix}:{{llm}}:{kind}:*")]


@pytest.mark.parametrize(("count", "scripts"), [(1, 2), (2, 4), (3, 4)])
def test_every_job_gets_its_turn_in_order_and_hardly_asks(
    fleet: MakeFleet, count: int, scripts: int
) -> None:
    """64 slots, 3 in 100 jobs twenty times as large as the others."""
    limit = 200_000
    f = fleet(*(provider(f"p{n}", tokens_per_minute=limit, burst_s=0.8) for n in range(count)))
    rng = random.Random(1)
    sizes = always(lambda: Job(tokens=(rng.randint(30, 40) if rng.random() < 0.03 else 2, 0)))
    jobs = (Job(tokens=(1000 * job.total, 0)) for job in sizes)
    callers = Callers(f)
    callers.slots(64, jobs)
    callers.run(START + 150)
    assert overtaken_by(callers.granted) <= HORIZON_S
    assert max(len(job.asked) for job in callers.granted) <= scripts
    asked = sum(len(job.asked) for job in callers.granted) / len(callers.granted)
    assert asked <= 2.6
    used = sum(job.total for job in callers.granted if START + 60 <= job.start < START + 150)
    assert used >= 0.97 * count * limit * 1.5


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 3),
    slots=st.integers(2, 30),
    refunds=st.booleans(),
    blocks=st.booleans(),
)
def test_nobody_is_left_behind_whatever_happens(
    valkey: Valkey, seed: int, count: int, slots: int, *, refunds: bool, blocks: bool
) -> None:
    """Random sizes, tenants, providers, refunds and blocks: each job ends, and the line with them."""
    rng = random.Random(seed)
    kind = "anthropic" if refunds else "openai"
    f = Fleet(
        valkey.url,
        [
            provider(f"p{n}", kind=kind, tokens_per_minute=6000 * (n + 1), max_concurrency=8)
            for n in range(count)
        ],
    )
    try:

        def answer(job: Job) -> tuple[float, Succeeded | RateLimited]:
            if blocks and rng.random() < 0.05:
                return 0.1, RateLimited(retry_after=rng.choice([0.2, 3.0, 20.0]))
            usage = Usage(input_tokens=job.tokens[0], output_tokens=rng.randint(0, job.tokens[1]))
            return rng.uniform(0.1, 8), Succeeded(usage=usage)

        callers = Callers(f, answer)
        jobs = [
            Job(
                tokens=(rng.randint(1, 300), rng.randint(1, 300)),
                tenant=rng.choice("abc"),
                providers=tuple(rng.sample(f.names, rng.randint(1, count))),
            )
            for _ in range(80)
        ]
        callers.slots(slots, iter(jobs))
        callers.run()
        assert len(callers.granted) == len(jobs)
        assert line_keys(f) == []
    finally:
        f.close()


def test_a_dead_waiter_costs_those_behind_its_own_seconds_and_no_more(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    callers = Callers(f)
    jobs = [callers.start(Job(tokens=(1000, 0))) for _ in range(40)]
    dead = jobs[10:13]
    for job in dead:
        callers.die(job)
    callers.run()
    for place, job in enumerate(jobs):
        if job not in dead:
            assert job.start - START <= place + MOMENT_S
    late = callers.start(Job(tokens=(1000, 0)))
    assert late.start == f.now


def test_a_process_that_died_with_its_whole_line_stops_nobody(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    callers = Callers(f)
    for _ in range(30):
        callers.die(callers.start(Job(tokens=(1000, 0))))
    alive = callers.start(Job(tokens=(1000, 0)))
    callers.run()
    assert alive.waited <= 30 + MOMENT_S
    f.advance(31)
    assert f.go(tokens=(1000, 0)).delay == 0


def test_a_waiter_that_is_late_lets_others_pass_and_keeps_its_turn(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    for _ in range(6):
        f.go(tokens=(1000, 0))
    late, next_one = f.claim(tokens=(5000, 0)), f.claim(tokens=(1000, 0))
    f.wait(late)
    behind = f.wait(next_one)
    f.advance(behind.delay + LATE_S + 0.1)
    f.go(f.claim(tokens=(1000, 0), waiter=next_one.waiter))
    f.go(f.claim(tokens=(5000, 0), waiter=late.waiter))


def test_a_small_tenant_does_not_wait_for_a_large_one(fleet: MakeFleet) -> None:
    """Ten jobs beside ten thousand: about as long as alone at half the pace."""
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0.8))
    callers = Callers(f)
    large = copies(Job(tokens=(1000, 0), tenant="large"), 10_000)
    callers.slots(60, large)
    callers.run(START + 30)
    small = [Job(tokens=(1000, 0), tenant="small") for _ in range(10)]
    callers.slots(2, iter(small))
    callers.run(START + 80)
    assert all(job.waited <= HORIZON_S + 3 for job in small)


def test_tenants_with_enough_to_do_are_served_alike(fleet: MakeFleet) -> None:
    """However many slots and however large the jobs: within two jobs, over any stretch of time."""
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0.8))
    callers = Callers(f)
    rng = random.Random(5)
    for tenant, slots, largest in (("a", 40, 500), ("b", 12, 2000), ("c", 25, 1000)):
        callers.slots(
            slots,
            always(lambda t=tenant, most=largest: Job(tokens=(rng.randint(1, most), 0), tenant=t)),
        )
    callers.run(START + 200)
    served = dict.fromkeys("abc", 0)
    apart: list[tuple[int, int, int]] = []
    for job in sorted(callers.granted, key=lambda one: one.granted):
        if job.granted > START + 60:
            served[job.tenant] += job.total
            apart.append((served["a"], served["b"], served["c"]))
    for x, y in itertools.combinations(range(3), 2):
        gaps = [one[x] - one[y] for one in apart]
        # The order is kept to within what is promised at once, which is the horizon's worth.
        assert max(gaps) - min(gaps) <= 2 * 2000 + HORIZON_S * 1000


def test_who_comes_again_is_served_among_tenants_that_come_but_once(fleet: MakeFleet) -> None:
    """Forty wait at a time, each of another tenant: two seconds of quota are a turn of eighty seconds."""
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0.8))
    callers = Callers(f)
    names = itertools.count()
    callers.slots(46, always(lambda: Job(tokens=(1000, 0), tenant=f"tenant-{next(names)}")))
    callers.run(START + 10)
    first = callers.start(Job(tokens=(2000, 0), tenant="again"))
    callers.run(START + 60)
    second = callers.start(Job(tokens=(2000, 0), tenant="again"))
    callers.run(START + 200)
    assert 0 < first.waited <= 50
    assert 0 < second.waited <= 90
    assert f.command("ZCARD", f"{f.prefix}:{{llm}}:t:p") <= 46 + 1


def test_what_is_urgent_waits_for_the_promises_and_one_job(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    callers = Callers(f)
    callers.slots(50, copies(Job(tokens=(2000, 0)), 10_000))
    callers.run(START + 40.3)
    urgent = [callers.start(Job(tokens=(1000, 0), priority=9)) for _ in range(3)]
    callers.run(START + 60)
    for place, job in enumerate(urgent):
        assert job.waited <= HORIZON_S + 2 + place + MOMENT_S


def test_priority_is_worth_minutes_not_eternity(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    callers = Callers(f)
    callers.slots(30, copies(Job(tokens=(20_000, 0), priority=1), 10_000))
    callers.run(START + 30)
    normal = callers.start(Job(tokens=(1000, 0)))
    callers.run(START + 1500)
    assert 500 <= normal.waited <= 1400


def test_a_claim_goes_wherever_it_can_first_and_leaves_the_other_lines(fleet: MakeFleet) -> None:
    f = fleet(
        provider("slow", requests_per_minute=6, burst_s=0),
        provider("fast", requests_per_minute=60, burst_s=0),
    )
    f.go(providers=("slow",))
    for _ in range(6):
        f.go(providers=("fast",))
    callers = Callers(f)
    job = callers.start(Job(tokens=(1, 1)))
    assert [f.status(name).waiting for name in f.names] == [1, 1]
    callers.run()
    assert job.provider == "fast"
    assert job.granted - START == pytest.approx(1, abs=MOMENT_S)
    assert line_keys(f) == []


@pytest.mark.parametrize("limits", [(210, 90), (150, 150)])
def test_lines_do_not_upset_the_weights(fleet: MakeFleet, limits: tuple[int, int]) -> None:
    """While waiting shares follow the limits, all of which are used; afterwards weights are exact."""
    f = fleet(
        *(
            provider(name, weight=weight, requests_per_minute=limit, burst_s=0)
            for name, weight, limit in zip("ab", (0.7, 0.3), limits, strict=True)
        )
    )
    callers = Callers(f)
    callers.slots(60, copies(Job(tokens=(1, 1)), 10_000))
    callers.run(START + 120)
    counted = [job for job in callers.granted if START + 20 <= job.start < START + 120]
    of_a = sum(job.provider == "a" for job in counted) / len(counted)
    assert of_a == pytest.approx(limits[0] / 300, abs=0.01)
    assert len(counted) >= 0.99 * 500
    for waiter in f.command("ZRANGE", f"{f.prefix}:{{llm}}:l:a", 0, -1):
        f.leave(waiter.decode())
    f.advance(700)
    after = []
    for _ in range(200):
        after.append(f.go().provider)
        f.advance(1)
    assert after.count("a") == pytest.approx(140, abs=1)


def test_a_slot_that_comes_free_goes_to_the_first_in_the_line(fleet: MakeFleet) -> None:
    f = fleet(provider("p", max_concurrency=4, timeout_s=60))
    callers = Callers(f)
    callers.slots(40, copies(Job(tokens=(1, 1)), 200))
    callers.run()
    assert len(callers.granted) == 200
    assert overtaken_by(callers.granted) <= MOMENT_S
    assert max(job.start for job in callers.granted) - START <= 200 / 4 * 1.05
    waiting = [len(job.asked) for job in callers.granted]
    assert sum(waiting) / len(waiting) <= 3


def test_a_slot_is_not_kept_for_a_waiter_that_died(fleet: MakeFleet) -> None:
    """However many of them died, it is not even late."""
    f = fleet(provider("p", max_concurrency=4, timeout_s=60))
    callers = Callers(f)
    for _ in range(4):
        callers.start(Job(tokens=(1, 1)))
    killed = [callers.start(Job(tokens=(1, 1), process="killed")) for _ in range(40)]
    alive = [callers.start(Job(tokens=(1, 1))) for _ in range(8)]
    callers.kill("killed", killed)
    callers.run()
    assert [job.waited for job in alive] == pytest.approx([1] * 4 + [2] * 4, abs=MOMENT_S)


def test_a_slot_is_not_kept_for_long_for_a_process_that_hangs(fleet: MakeFleet) -> None:
    f = fleet(provider("p", max_concurrency=1, timeout_s=60))
    callers = Callers(f)
    callers.start(Job(tokens=(1, 1)))
    for _ in range(40):
        callers.die(callers.start(Job(tokens=(1, 1), process="hangs")))
    alive = callers.start(Job(tokens=(1, 1)))
    callers.run()
    assert alive.waited <= 2 * 60 + LATE_S + MOMENT_S


def test_long_calls_one_at_a_time_are_not_polled_for(fleet: MakeFleet) -> None:
    f = fleet(provider("p", max_concurrency=1, timeout_s=600))
    callers = Callers(f, lambda _: (14.0, Succeeded(usage=None)))
    callers.slots(64, copies(Job(tokens=(1, 1)), 150))
    callers.run()
    assert callers.scripts / 150 <= 20


def test_what_is_urgent_takes_its_tenant_s_turn_and_nobody_else_s(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0.8))
    callers = Callers(f)
    callers.slots(200, copies(Job(tokens=(1000, 0), tenant="large"), 10_000))
    callers.start_at(START + 20, Job(tokens=(1000, 0), tenant="large", priority=1))
    small = [Job(tokens=(1000, 0), tenant="small") for _ in range(5)]
    for number, job in enumerate(small):
        callers.start_at(START + 30 + number, job)
    callers.run(START + 120)
    assert max(job.waited for job in small) <= 5 * 2 + 5


def test_who_comes_behind_many_dead_overtakes_nobody_alive(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    callers = Callers(f)
    for _ in range(51):
        callers.start(Job(tokens=(100, 0)))
    for _ in range(70):
        callers.die(callers.start(Job(tokens=(100, 0), process="killed")))
    alive = [callers.start(Job(tokens=(100, 0))) for _ in range(200)]
    new = [callers.start_at(START + 0.2 * n, Job(tokens=(100, 0))) for n in range(60)]
    callers.run()
    last = max(job.granted for job in alive)
    assert all(job.granted >= last - 6 for job in new)


def test_what_a_crashed_holder_leaves_is_found_without_a_call(fleet: MakeFleet) -> None:
    f = fleet(provider("p", max_concurrency=1, timeout_s=60))
    f.go()
    callers = Callers(f)
    waiting = callers.start(Job(tokens=(1, 1)))
    callers.run()
    assert 15 <= waiting.waited <= 17.1


def test_quota_that_is_given_back_wakes_those_who_can_have_it(fleet: MakeFleet) -> None:
    """Answers take a tenth of what was reserved: the quota is used all the same."""
    f = fleet(provider("p", kind="anthropic", output_tokens_per_minute=60_000, burst_s=0.8))

    def answer(_: Job) -> tuple[float, Succeeded]:
        return 1.0, Succeeded(usage=Usage(input_tokens=10, output_tokens=200))

    callers = Callers(f, answer)
    callers.slots(64, copies(Job(tokens=(10, 2000)), 10_000))
    callers.run(START + 60)
    used = 200 * sum(START + 20 <= job.start < START + 60 for job in callers.granted)
    # Two seconds of quota are taken for a second: so much must be under way to use all of it.
    assert used >= 0.5 * 40_000
    assert max(len(job.asked) for job in callers.granted) <= 4


def test_who_gave_a_grant_back_unused_does_not_queue_again(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    Callers(f)  # somebody listens: those who wait are alive
    first = [f.go(tokens=(1000, 0)) for _ in range(6)]
    for _ in range(20):
        f.wait(tokens=(1000, 0))
    f.settle(first[-1], Abandoned())
    f.go(tokens=(1000, 0), waiter=first[-1].waiter, returned=True)
    f.settle(first[-2], Abandoned())
    assert f.wait(tokens=(1000, 0), waiter=first[-2].waiter).delay > 10


def test_who_leaves_makes_room_at_once(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0))
    callers = Callers(f)
    for _ in range(6):
        callers.start(Job(tokens=(1000, 0)))
    large = callers.start(Job(tokens=(50_000, 0)))
    small = callers.start(Job(tokens=(1000, 0)))
    callers.die(large)
    f.leave(large.waiter)
    callers.run()
    assert small.waited <= 6 + MOMENT_S


def test_a_line_that_is_over_leaves_nothing_behind(fleet: MakeFleet) -> None:
    f = fleet(provider("p", tokens_per_minute=60_000, burst_s=0), provider("q", max_concurrency=2))
    callers = Callers(f)
    jobs = (Job(tokens=(500, 0), tenant=f"tenant-{number}") for number in range(150))
    callers.slots(30, jobs)
    callers.run(START + 10)
    assert len(line_keys(f)) == 6
    assert all(f.command("TTL", key) > 0 for key in line_keys(f))
    callers.run()
    assert line_keys(f) == []


def test_a_clock_that_was_an_hour_ahead_leaves_no_ghosts_in_the_line(fleet: MakeFleet) -> None:
    f = fleet(provider("p", requests_per_minute=60, burst_s=0))
    f.advance(3600)
    while isinstance(f.admit(), Go):
        pass
    f.advance(-3600)
    # Nothing stands before it but the calls that such a server may have forgotten.
    assert f.go().delay == pytest.approx(5, abs=1e-4)
