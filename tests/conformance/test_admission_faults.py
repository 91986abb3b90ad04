"""A fleet at work while something breaks: the limits hold, all goes on, and nothing piles up."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.callers import ANSWERED, Callers, Job, copies
from support.fleet import START, Fleet, provider
from support.valkey import Valkey

from llmtasks import settings
from llmtasks.admission import (
    CONFIRM_ABOVE_S,
    Admission,
    Failed,
    Go,
    Outcome,
    ProviderState,
    RateLimited,
    Succeeded,
    Wait,
    connect,
)
from llmtasks.admission.scripts import compose
from llmtasks.messages import Usage

MakeFleet = Callable[..., Fleet]

HORIZON_S = 5.0
#: Seconds of quota that one job takes in the runs here, and those that may be spent at once.
JOB_S = 1.0
BURST_S = 0.8
#: A wake-up call and the question after it take a moment.
MOMENT_S = 0.05


def excess(jobs: list[Job]) -> float:
    """By how many seconds of quota the worst window is above its length and one job."""
    starts = sorted(job.start for job in jobs)
    lags = [n * JOB_S - start for n, start in enumerate(starts)]
    soonest = itertools.accumulate(lags, min)
    return max(lag - least for lag, least in zip(lags, soonest, strict=True))


def at_work(f: Fleet, slots: int = 40) -> Callers:
    """Callers with a backlog for a minute's quota of 60 jobs."""
    callers = Callers(f)
    callers.slots(slots, copies(Job(tokens=(1000, 0)), 100_000))
    return callers


def one_job_a_second(**values: Any) -> settings.Provider:
    return provider("p", tokens_per_minute=60_000, burst_s=BURST_S, **values)


# --- the server ------------------------------------------------------------------------------------


def lose_everything(f: Fleet) -> None:
    for key in f.state():
        f.command("DEL", key)


def test_a_server_that_loses_everything_under_load_exceeds_no_limit_by_more_than_it_promised(
    fleet: MakeFleet,
) -> None:
    f = fleet(one_job_a_second())
    callers = at_work(f)
    for lost in (20.5, 40.2):
        callers.at(START + lost, lambda: lose_everything(f))
    callers.run(START + 120)
    assert excess(callers.granted) <= 2 * (HORIZON_S + JOB_S)
    for lost in (20.5, 40.2):
        around = [job for job in callers.granted if abs(job.start - START - lost) < 15]
        assert excess(around) <= HORIZON_S + JOB_S
    assert len(callers.granted) >= 0.95 * 120


@pytest.mark.parametrize("step", [-30.0, 30.0, -3600.0, 3600.0])
def test_a_server_clock_that_jumps_neither_floods_nor_stops_the_fleet(
    fleet: MakeFleet, step: float
) -> None:
    f = fleet(one_job_a_second())
    callers = at_work(f)

    def jump() -> None:
        f.skew = step
        f.set_clock(f.now)

    callers.at(START + 30.5, jump)
    callers.run(START + 150)
    assert excess(callers.granted) <= HORIZON_S + JOB_S
    starts = sorted(job.start for job in callers.granted)
    pauses = [later - sooner for sooner, later in itertools.pairwise([*starts, START + 150])]
    assert max(pauses) <= 30 + HORIZON_S + JOB_S


def test_scripts_that_are_flushed_under_load_change_no_decision(fleet: MakeFleet) -> None:
    runs = []
    for flushed in (False, True):
        f = fleet(one_job_a_second(max_concurrency=30))
        callers = at_work(f)
        for second in range(1, 30, 3):
            if flushed:
                callers.at(START + second, lambda f=f: f.command("SCRIPT", "FLUSH"))
        callers.run(START + 40)
        runs.append([(job.granted, job.start, len(job.asked)) for job in callers.granted])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("hours", [-1, 1])
def test_no_clock_of_a_caller_is_asked(
    fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Whatever time it is there, the scripts decide alike."""
    decisions = []
    for ahead in (0, hours * 3600):
        f = fleet(one_job_a_second(max_concurrency=6))
        clock = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda ahead=ahead, clock=clock: clock() + ahead)
            found: list[object] = [f.admit(waiter=f"process.{n}") for n in range(8)]
            first = found[0]
            assert isinstance(first, Go)
            f.settle(first, RateLimited(retry_after=3))
            f.advance(2)
            found += [f.admit(waiter="process.7"), f.blocked_for(), f.status("p")]
        decisions.append(found)
    assert decisions[0] == decisions[1]


def test_a_process_that_begins_finds_the_fleet_as_it_is(fleet: MakeFleet, valkey: Valkey) -> None:
    """Its first decisions reset neither a block nor an opened breaker."""
    f = fleet(provider("a"), provider("b", requests_per_minute=60, burst_s=0))
    for _ in range(5):
        f.settle(f.go(providers=("a",)), Failed())
    f.settle(f.go(providers=("b",)), RateLimited(retry_after=60))
    before = f.state()
    clock = f"local function clock() return {f.now:.6f} end"

    async def begin() -> None:
        new = Admission(
            connect(valkey.url),
            prefix=f.prefix,
            providers=[provider("a"), provider("b", requests_per_minute=60, burst_s=0)],
            cache=settings.Cache(),
            scripts=compose(clock),
        )
        states = [one.state for one in await new.status()]
        assert states == [ProviderState.OPEN, ProviderState.BLOCKED]
        wait = await new.admit(f.claim())
        assert isinstance(wait, Wait)
        assert wait.delay == pytest.approx(30, abs=1e-3)
        await new.aclose()

    f.run(begin())
    assert f.state() == before


# --- the provider ----------------------------------------------------------------------------------


def test_a_retry_after_under_load_is_silence_and_no_rush_follows(fleet: MakeFleet) -> None:
    """Who was told 0.2 s before its call may still go; all others come after, at the provider's pace."""
    f = fleet(one_job_a_second())
    refused_at = START + 20.5
    silence = 30.0
    state = {"refusals": 0}

    def answer(_: Job) -> tuple[float, Outcome]:
        if f.now >= refused_at and not state["refusals"]:
            state["refusals"] = 1
            state["at"] = f.now + 0.01
            return 0.01, RateLimited(retry_after=silence)
        return ANSWERED

    callers = Callers(f, answer)
    callers.slots(40, copies(Job(tokens=(1000, 0)), 100_000))
    callers.run(START + 150)
    since = sorted(job.start for job in callers.granted if job.start > state["at"])
    assert [
        start for start in since if CONFIRM_ABOVE_S <= start - state["at"] < silence - 1e-3
    ] == []
    assert (
        excess([job for job in callers.granted if job.start >= state["at"] + silence - 1]) <= 1e-3
    )
    assert since[0] <= state["at"] + silence + 1
    # At four fifths of the pace, and growing.
    assert len(since) >= 0.8 * (START + 150 - state["at"] - silence)


def test_while_all_are_out_only_probes_call_and_the_first_answer_brings_all_back(
    fleet: MakeFleet,
) -> None:
    f = fleet(provider("a"), provider("b"))
    down, up = START + 10, START + 110
    called: list[float] = []

    def answer(_: Job) -> tuple[float, Outcome]:
        called.append(f.now)
        return (0.5, Failed()) if down <= f.now < up else ANSWERED

    callers = Callers(f, answer)
    callers.slots(12, copies(Job(tokens=(10, 10)), 100_000))
    callers.run(up - 0.001)
    # Openings of 30 and 60 seconds, at two providers.
    assert sum(down + 2 <= at for at in called) == 2 * 2
    opening = [f.status(name).next_opening for name in f.names]
    callers.run(up + max(opening) + 20)
    assert min(at for at in called if at >= up) - up <= min(opening) + 2
    assert [f.status(name).state for name in f.names] == [ProviderState.OK] * 2
    assert sum(at >= f.now - 5 for at in called) >= 0.9 * 12 * 5


def test_the_fleet_is_never_wider_than_one_probe_at_a_provider_that_is_out(
    fleet: MakeFleet,
) -> None:
    """32 slots, and calls that take longer than a waiting prober looks again."""
    f = fleet(provider("a"))
    called: list[float] = []

    def answer(_: Job) -> tuple[float, Outcome]:
        called.append(f.now - START)
        return 12.0, Failed()

    callers = Callers(f, answer)
    callers.slots(32, copies(Job(tokens=(1, 1)), 100_000))
    callers.run(START + 120)
    # The fifth failure opens it; four slots had gone on by then.
    assert [round(at) for at in called] == [0] * 32 + [12] * 4 + [42, 114]


def test_a_large_job_among_endless_small_ones_has_its_turn(fleet: MakeFleet) -> None:
    """900 tokens among calls of 50, of 1000 a minute: within two minutes."""
    f = fleet(provider("p", tokens_per_minute=1000, burst_s=BURST_S))
    callers = Callers(f)
    callers.slots(30, copies(Job(tokens=(50, 0)), 100_000))
    callers.run(START + 65)
    large = callers.start(Job(tokens=(900, 0)))
    callers.run(START + 65 + 180)
    assert 0 < large.waited <= 120


# --- what it costs ---------------------------------------------------------------------------------


def calls_in_scripts(f: Fleet, act: Callable[[], object]) -> Counter[str]:
    """How often each command ran on the server."""
    f.command("CONFIG", "RESETSTAT")
    act()
    statistics = f.command("INFO", "commandstats")
    return Counter(
        {name.removeprefix("cmdstat_"): fields["calls"] for name, fields in statistics.items()}
    )


def test_a_large_document_costs_the_server_no_more_than_a_small_one(fleet: MakeFleet) -> None:
    """The same commands for one token and for forty thousand: nothing is kept per token."""
    f = fleet(provider("p", tokens_per_minute=100_000_000, requests_per_minute=1e6, burst_s=0))
    f.settle(f.go(), Succeeded(usage=None))

    def job(tokens: int) -> None:
        f.settle(f.go(tokens=(tokens, 0)), Succeeded(usage=None))

    one, many = (calls_in_scripts(f, lambda t=tokens: job(t)) for tokens in (1, 40_000))
    assert one == many
    assert sum(one.values()) < 30


def test_what_the_server_keeps_does_not_grow_with_the_jobs(fleet: MakeFleet) -> None:
    """So much for each provider, and for each call under way; the rest ends within a minute."""
    f = fleet(
        provider("a", kind="anthropic", tokens_per_minute=300_000, max_concurrency=50),
        provider("b", requests_per_minute=300, weight=0.2),
    )
    refused = set[int]()

    def answer(job: Job) -> tuple[float, Outcome]:
        if job.number % 50 == 7 and job.number not in refused:
            refused.add(job.number)
            return 1.0, RateLimited(retry_after=1.0)
        return 1.0, Succeeded(usage=Usage(input_tokens=900, output_tokens=0))

    count, slots = 600, 40
    callers = Callers(f, answer)
    callers.slots(
        slots, (Job(tokens=(1000, 0), tenant=f"tenant-{n}", exact=False) for n in range(count))
    )
    kept: list[int] = []
    while len(callers.granted) < count:
        callers.run(f.now + 10)
        keys = set(f.command("KEYS", f"{f.prefix}:*"))
        grants = {key for key in keys if b"{llm}:g:" in key}
        # They end by the server's own clock, which is not turned here.
        settled = {key for key in grants if 0 < f.command("TTL", key) <= 60}
        assert len(grants - settled) <= slots
        assert all(memory(f, key) < 400 for key in grants)
        assert len(keys - grants) <= 2 * 5
        kept.append(sum(memory(f, key) for key in keys - grants))
        f.command("DEL", *settled)
    assert len(refused) > 3
    assert max(kept) <= 2 * 500 + slots * 500


def memory(f: Fleet, key: bytes) -> int:
    """Bytes that the server needs for a key and its value."""
    return int(f.command("MEMORY", "USAGE", key))
