"""A process alone: never above its share in any window, all or nothing, and only where nobody said no."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.fleet import provider
from support.windows import LIMITS, worst_excess

from llmtasks import settings
from llmtasks.admission import (
    Abandoned,
    Alone,
    Claim,
    Disabled,
    Failed,
    Go,
    Outcome,
    ProviderState,
    ProviderStatus,
    RateLimited,
    Rejected,
    Succeeded,
    Wait,
)
from llmtasks.admission.alone import HORIZON_S
from llmtasks.admission.leases import RENEW_S
from llmtasks.admission.limits import costs, per_minute
from llmtasks.errors import DocumentTooLarge
from llmtasks.messages import Usage

START = 1000.0


def status(name: str, state: ProviderState = ProviderState.OK, **values: Any) -> ProviderStatus:
    return ProviderStatus(
        name=name,
        state=state,
        **{
            "reason": "because",
            "next_opening": 0.0,
            "next_free": 0.0,
            "waiting": 0,
            "effective_ratio": 1.0,
            "in_flight": None,
            "max_concurrency": None,
            "dimensions": (),
            **values,
        },
    )


@dataclass
class Process:
    """One process with a share, and its clock."""

    providers: list[settings.Provider]
    share: float = 0.5
    now: float = START
    until: float = math.inf
    numbers: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.alone = Alone(self.providers, self.share)

    def admit(self, tokens: tuple[int, int] = (10, 10), **values: Any) -> Go | Wait | None:
        number = next(self.numbers)
        claim = Claim(
            attempt_id=f"attempt-{number}",
            waiter=f"process.{number}",
            key=None,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            providers=tuple(one.name for one in self.providers),
            **values,
        )
        return self.alone.admit(claim, self.now, self.until)

    def go(self, tokens: tuple[int, int] = (10, 10), **values: Any) -> Go:
        decision = self.admit(tokens, **values)
        assert isinstance(decision, Go), decision
        return decision

    def settle(self, go: Go, outcome: Outcome) -> None:
        self.alone.learn(go.provider, outcome, self.now)
        self.alone.settle(go, outcome, self.now)

    def at_once(self, tokens: tuple[int, int] = (10, 10)) -> int:
        """Calls that may start now."""
        decisions = (self.admit(tokens) for _ in itertools.count())
        return sum(1 for _ in itertools.takewhile(starts_now, decisions))


def starts_now(decision: Go | Wait | None) -> bool:
    return isinstance(decision, Go) and decision.delay < 1e-9


STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 120)),  # seconds that pass
        st.integers(1, 600),  # input tokens
        st.integers(0, 400),  # output tokens
        st.sampled_from([None, None, None, Rejected(), RateLimited(retry_after=4.0)]),
    ),
    min_size=1,
    max_size=60,
)


@examples(max_examples=200, deadline=None)
@given(
    limits=st.lists(LIMITS, min_size=1, max_size=2),
    burst=st.sampled_from([0.0, 0.8, 3.0]),
    share=st.sampled_from([0.01, 0.25, 0.5, 1.0]),
    pace=st.sampled_from([0.1, 0.7, 1.0]),
    steps=STEPS,
)
def test_no_window_in_any_dimension_exceeds_the_share(limits, burst, share, pace, steps):
    providers = [provider(f"p{i}", burst_s=burst, **one) for i, one in enumerate(limits)]
    process = Process(providers, share)
    process.alone.know([status(one.name, effective_ratio=pace) for one in providers], START)
    granted: dict[str, list[tuple[float, tuple[float, ...]]]] = {one.name: [] for one in providers}
    silent = dict.fromkeys(granted, 0.0)
    for seconds, input_tokens, output_tokens, outcome in steps:
        process.now += seconds
        try:
            decision = process.admit((input_tokens, output_tokens))
        except DocumentTooLarge:
            continue
        if isinstance(decision, Go):
            start = process.now + decision.delay
            assert silent[decision.provider] <= process.now
            assert start <= process.now + HORIZON_S
            granted[decision.provider].append((start, costs(input_tokens, output_tokens)))
            if outcome is not None:
                process.settle(decision, outcome)
            if isinstance(outcome, RateLimited):
                silent[decision.provider] = process.now + outcome.retry_after
    for one in providers:
        for d, limit in enumerate(per_minute(one)):
            if limit is not None and granted[one.name]:
                seconds_per_unit = 60 / (limit * share * pace)
                grants = [(at, units[d] * seconds_per_unit) for at, units in granted[one.name]]
                assert worst_excess(grants, burst, rounding_s=0) <= 1e-6


@examples(max_examples=100, deadline=None)
@given(limits=st.lists(LIMITS, min_size=1, max_size=2), steps=STEPS)
def test_who_gets_no_place_takes_nothing(limits, steps):
    process = Process([provider(f"p{i}", max_concurrency=6, **one) for i, one in enumerate(limits)])
    for seconds, input_tokens, output_tokens, _ in steps:
        process.now += seconds / 20
        before = copy.deepcopy(vars(process.alone))
        try:
            decision = process.admit((input_tokens, output_tokens))
        except DocumentTooLarge:
            decision = None
        if not isinstance(decision, Go):
            assert vars(process.alone) == before


@examples(max_examples=100, deadline=None)
@given(limits=LIMITS, tokens=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100))))
def test_what_was_never_sent_is_given_back_whole_and_nothing_is_saved_up(limits, tokens):
    one = provider(burst_s=1, max_concurrency=40, **limits)
    used, fresh = Process([one]), Process([one])
    for pair in tokens:
        go = used.go(pair)
        used.settle(go, Abandoned())
        assert not used.alone.holds(go.attempt_id)
    assert used.at_once() == fresh.at_once()
    used.now = fresh.now = START + 1000
    for go in [go for _ in range(5) if isinstance(go := used.admit(), Go)]:
        used.now += 30
        used.settle(go, Abandoned())
    used.now = fresh.now = START + 2000
    assert used.at_once() == fresh.at_once()


def test_a_backlog_uses_the_whole_share_and_no_more():
    process = Process([provider(requests_per_minute=240, burst_s=0)], share=0.25)
    starts = []
    while process.now < START + 60:
        match process.admit():
            case Go() as go:
                starts.append(process.now + go.delay)
            case Wait(delay=delay, blocked=False):
                process.now += delay
    assert starts == pytest.approx([START + number for number in range(len(starts))], abs=1e-6)
    assert len(starts) == 60 + HORIZON_S


@pytest.mark.parametrize(
    ("reserved", "real", "seconds", "delay"),
    [(100, 400, 0.0, 8.0), (400, 100, 0.0, 2.0), (100, 400, 60.0, 6.0), (400, 100, 60.0, 0.0)],
)
def test_the_real_output_counts(reserved, real, seconds, delay):
    one = provider(kind="anthropic", output_tokens_per_minute=6000, burst_s=0)
    process = Process([one], share=0.5)
    go = process.go((1, reserved))
    process.now += seconds
    process.settle(go, Succeeded(usage=Usage(input_tokens=1, output_tokens=real)))
    following = process.admit((1, 1))
    behind = following.delay + (HORIZON_S if isinstance(following, Wait) else 0)
    assert behind == pytest.approx(delay)


@pytest.mark.parametrize(
    ("places", "share", "usable"), [(10, 0.25, 2), (3, 0.5, 1), (3, 1.0, 3), (1, 0.5, 0)]
)
def test_places_are_rounded_down_and_come_back(places, share, usable):
    process = Process([provider(max_concurrency=places)], share)
    grants = [go for _ in range(places + 1) if isinstance(go := process.admit(), Go)]
    assert len(grants) == usable
    for go in grants:
        process.settle(go, Rejected())
    assert sum(isinstance(process.admit(), Go) for _ in range(places + 1)) == usable


def test_weights_are_kept_and_a_standby_waits_for_its_turn():
    process = Process(
        [
            provider("a", weight=0.7, requests_per_minute=60_000),
            provider("b", weight=0.3, requests_per_minute=60_000),
            provider("spare", weight=0),
        ]
    )
    served = [process.go().provider for _ in range(100)]
    assert (served.count("a"), served.count("b")) == (70, 30)
    assert process.go(tried=("a", "b")).provider == "spare"


@pytest.mark.parametrize(
    ("outcome", "silent"),
    [
        (RateLimited(retry_after=7.0), 7.0),
        (Failed(), 30.0),
        (Failed(retry_after=45.0), 45.0),
        (Disabled(reason="billing"), math.inf),
        (Rejected(), 0.0),
    ],
)
def test_who_said_no_is_left_alone(outcome, silent):
    process = Process([provider("a"), provider("b", weight=0)])
    go = process.go()
    process.settle(go, outcome)
    process.now += min(silent, 1e6) - 0.01
    assert process.go().provider == ("b" if silent else "a")
    process.now += 0.02
    assert process.go().provider == ("b" if silent == math.inf else "a")


@pytest.mark.parametrize(
    "state", [ProviderState.OPEN, ProviderState.HALF_OPEN, ProviderState.DISABLED]
)
def test_whom_the_fleet_had_out_is_not_called(state):
    process = Process([provider()])
    process.alone.know([status("p", state)], START)
    assert process.admit() is None or not isinstance(process.admit(), Go)
    assert process.alone.blocked_for(["p"], START) == (math.inf, "p: because")
    process.alone.know([status("p")], START)
    assert process.go().delay == 0


def test_a_retry_after_that_the_fleet_heard_is_obeyed():
    process = Process([provider()])
    process.alone.know([status("p", ProviderState.BLOCKED, next_opening=20.0)], START)
    assert process.admit() == Wait(delay=20.0, reason="p: because", blocked=True)
    process.now += 20
    assert process.go().delay == 0


def test_nothing_starts_after_the_end_and_nobody_waits_for_it():
    process = Process([provider(requests_per_minute=60, burst_s=0)], until=START + 7)
    delays = []
    while True:
        match process.admit():
            case Go(delay=delay):
                delays.append(process.now + delay - START)
            case Wait(delay=delay):
                process.now += delay
            case None:
                break
    assert delays == pytest.approx([0, 2, 4, 6])


def test_a_process_alone_waits_for_as_long_as_the_fleet_promises() -> None:
    assert constant("gcra", "HORIZON") == HORIZON_S


def test_two_renewals_may_fail_before_a_lease_ends() -> None:
    for name, lease in (("flight", "LEASE"), ("slots", "SLOT_LEASE")):
        assert constant(name, lease) > 3 * RENEW_S


def constant(concept: str, name: str) -> float:
    """A number of the scripts, in seconds."""
    lua = resources.files("llmtasks.admission") / "lua" / f"{concept}.lua"
    found = re.search(rf"^local {name} = ([\d.]+)$", lua.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{concept}.lua has no {name}"
    return float(found[1])
