"""What is reserved for an answer where only what it has is counted, and what becomes of the difference."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from support.callers import Callers, Job
from support.fleet import START, Fleet, provider

from llmtasks.admission import Abandoned, Failed, Outcome, RateLimited, Succeeded
from llmtasks.errors import DocumentTooLarge
from llmtasks.messages import Usage
from llmtasks.simulator.quota import Bucket

MakeFleet = Callable[..., Fleet]

LIMIT = 60_000
BOUND = 1024


def counting(name: str = "a", **values: float) -> object:
    """A provider that counts what is written."""
    return provider(
        name, **({"kind": "anthropic", "output_tokens_per_minute": LIMIT, "burst_s": 0.8} | values)
    )


def wrote(tokens: int) -> Succeeded:
    return Succeeded(usage=Usage(input_tokens=10, output_tokens=tokens))


def learned(f: Fleet, tokens: int, *, times: int = 200, **values: object) -> None:
    """So many answers of so many tokens."""
    for _ in range(times):
        f.settle(f.go(tokens=(10, BOUND), **values), wrote(tokens))
        f.advance(2)


# --- what is reserved ------------------------------------------------------------------------------


def test_the_first_answers_may_have_all_they_may_have(fleet: MakeFleet) -> None:
    f = fleet(counting())
    assert f.go(tokens=(10, BOUND)).output_tokens == BOUND


@pytest.mark.parametrize(("real", "reserved"), [(64, 64), (700, 700), (1024, 1024), (1, 16)])
def test_what_answers_have_is_reserved_for_the_next(
    fleet: MakeFleet, real: int, reserved: int
) -> None:
    f = fleet(counting())
    learned(f, real)
    assert f.go(tokens=(10, BOUND)).output_tokens == pytest.approx(reserved, abs=2)
    assert f.go(tokens=(10, 2 * BOUND)).output_tokens == pytest.approx(2 * reserved, abs=4)


def test_a_provider_that_charges_the_bound_is_reserved_the_bound(fleet: MakeFleet) -> None:
    f = fleet(provider("a", tokens_per_minute=10_000_000))
    learned(f, 64, times=50)
    go = f.go(tokens=(10, BOUND))
    assert (go.input_tokens, go.output_tokens) == (10, BOUND)


def test_tasks_and_providers_are_told_apart(fleet: MakeFleet) -> None:
    f = fleet(counting("a"), counting("b"))
    learned(f, 64, task="summarize", providers=("a",))
    learned(f, 900, task="translate", providers=("a",))

    def reserved(**values: object) -> int:
        return f.go(tokens=(10, BOUND), **values).output_tokens

    assert reserved(task="summarize", providers=("a",)) == pytest.approx(64, abs=2)
    assert reserved(task="translate", providers=("a",)) == pytest.approx(900, abs=2)
    assert reserved(task="extract", providers=("a",)) == BOUND
    assert reserved(task="summarize", providers=("b",)) == BOUND


def test_answers_of_different_lengths_are_expected_on_the_high_side(fleet: MakeFleet) -> None:
    f = fleet(counting())
    rng = random.Random(5)
    expected = []
    for number in range(600):
        go = f.go(tokens=(10, BOUND))
        if number > 200:
            expected.append(go.output_tokens)
        f.settle(go, wrote(round(rng.uniform(50, 150))))
        f.advance(2)
    assert 105 < sum(expected) / len(expected) < 125


def test_calls_without_an_answer_teach_nothing(fleet: MakeFleet) -> None:
    f = fleet(counting())
    for outcome in (Failed(), Abandoned(), Succeeded(usage=None)):
        f.settle(f.go(tokens=(10, BOUND)), outcome)
        f.advance(10)
    assert f.go(tokens=(10, BOUND)).output_tokens == BOUND


def test_a_call_that_can_never_go_is_judged_by_all_that_its_answer_may_have(
    fleet: MakeFleet,
) -> None:
    f = fleet(counting(context_window=4000))
    learned(f, 16)
    with pytest.raises(DocumentTooLarge):
        f.admit(tokens=(2000, 2001))
    f = fleet(counting())
    learned(f, 16)
    with pytest.raises(DocumentTooLarge):
        f.admit(tokens=(10, LIMIT + 1))


# --- what becomes of the difference -----------------------------------------------------------------


def ahead(f: Fleet) -> float:
    return f.status("a").dimensions[0].ahead_s


def test_more_than_was_expected_is_debt_and_less_is_given_back(fleet: MakeFleet) -> None:
    f = fleet(counting(burst_s=0))
    learned(f, 100)
    for real in (1000, 20):
        f.advance(60)
        f.settle(f.go(tokens=(10, BOUND)), wrote(real))
        assert ahead(f) == pytest.approx(real * 60 / LIMIT, abs=1e-4)


def test_what_was_reserved_is_given_back_whatever_was_learned_since(fleet: MakeFleet) -> None:
    f = fleet(counting(burst_s=0))
    claim = f.claim(tokens=(10, BOUND))
    first = f.go(claim)
    learned(f, 16, times=1)
    f.advance(60)
    assert f.go(claim) == first
    ended = f.go(tokens=(10, BOUND))
    unused = f.go(tokens=(10, BOUND))
    f.settle(ended, wrote(16))
    f.settle(unused, Abandoned())
    assert ahead(f) == pytest.approx(16 * 60 / LIMIT, abs=1e-4)


def test_what_the_first_reserved_and_nobody_used_is_not_saved_up(fleet: MakeFleet) -> None:
    """Its time has passed; spent now, on top of what is promised, it would be above the limit."""
    f = fleet(counting(burst_s=0))
    first, *others = [f.go(tokens=(10, BOUND)) for _ in range(4)]
    f.settle(first, wrote(64))
    before = ahead(f)
    for go in others:
        f.settle(go, wrote(64))
    unused = len(others) * (BOUND - 64) * 60 / LIMIT
    assert before - ahead(f) < unused / 2


class Model:
    """A provider that counts what it has written when it has written it, and then refuses.

    `length` gives the tokens of an answer, `burst_s` is how many seconds of its limit it lets pass at
    once: calls that start evenly do not end evenly.
    """

    def __init__(
        self, f: Fleet, length: Callable[[], int], seconds: tuple[float, float], burst_s: float
    ) -> None:
        self.f, self.length, self.seconds = f, length, seconds
        self.bucket = Bucket(per_minute=LIMIT, burst_s=burst_s)
        self.written: list[tuple[float, int]] = []
        self.rng = random.Random(7)
        self.callers = Callers(f, self.answer)

    def answer(self, job: Job) -> tuple[float, Outcome]:
        if (wait := self.bucket.wait(0, self.f.now)) > 0:
            return 0.02, RateLimited(retry_after=wait)
        seconds, tokens = self.rng.uniform(*self.seconds), self.length()
        self.callers.at(self.f.now + seconds, lambda: self.write(tokens))
        usage = Usage(input_tokens=job.tokens[0], output_tokens=tokens)
        return seconds, Succeeded(usage=usage)

    def write(self, tokens: int) -> None:
        self.bucket = self.bucket.charged(tokens, self.f.now)
        self.written.append((self.f.now, tokens))

    def run(self, seconds: float, *, slots: int) -> None:
        self.callers.slots(slots, iter(lambda: Job(tokens=(10, BOUND)), None))
        self.callers.run(START + seconds)

    def used(self, first: float, last: float) -> float:
        """Share of the limit that was written between these seconds."""
        tokens = sum(n for at, n in self.written if first <= at - START < last)
        return tokens / (LIMIT / 60 * (last - first))


@pytest.mark.parametrize(
    ("seconds", "burst_s"),
    [
        pytest.param((0.4, 0.8), 2, marks=pytest.mark.chaos),
        ((4.0, 8.0), 5),
        pytest.param((15.0, 25.0), 10, marks=pytest.mark.chaos),
    ],
)
def test_answers_that_may_have_much_more_than_they_have_use_all_of_the_limit(
    fleet: MakeFleet, seconds: tuple[float, float], burst_s: float
) -> None:
    rng = random.Random(6)
    model = Model(fleet(counting()), lambda: round(rng.uniform(40, 90)), seconds, burst_s)
    model.run(180, slots=400)
    assert model.used(100, 180) >= 0.97
    assert model.callers.refused <= 0.001 * len(model.written)


def test_answers_that_become_four_times_longer_are_soon_expected(fleet: MakeFleet) -> None:
    """For as long as the first of them take, too much is promised; then the debt is waited out."""
    f = fleet(counting())
    rng = random.Random(6)

    def length() -> int:
        return round(rng.uniform(0.8, 1.2) * (60 if f.now < START + 40 else 240))

    model = Model(f, length, (1, 3), burst_s=10)
    model.run(140, slots=100)
    assert model.used(40, 100) <= 1.15
    assert model.used(100, 140) >= 0.9
