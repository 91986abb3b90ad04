"""A mixed backlog while workers, Valkey, PostgreSQL and providers are killed, paused, restarted and cut off.

Afterwards every job is accounted for once, every call that was paid twice has its cause in what was broken,
and no limit was exceeded. A seed draws the same breaks again: `make chaos SEEDS=7`, or `SEEDS=1-20`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from support.chaos import PRODUCER, Books, Installation, installation
from support.schedule import Break, drawn

#: Everything, workers and links more often.
EVERYTHING = ("worker", "worker", "worker", "redis", "redis", "sql", "sql", "east", "west")
#: Of the calls, how many a provider may refuse that enforces what it is configured to, and of a short run.
REFUSED, REFUSED_CALLS = 0.001, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """So many documents, a tenth of them submitted one by one while things break, the others before; some of
    those twice. `per_minute` calls are allowed at each of the two providers.
    """

    jobs: int
    workers: int = 4
    concurrency: int = 16
    per_minute: float = 900.0

    def submit(self, made: Installation, seconds: float) -> tuple[int, list[str]]:
        """How many jobs there will be, and the documents of those that are submitted meanwhile."""
        ids = made.add(self.jobs)
        single, rest = ids[: self.jobs // 10], ids[self.jobs // 10 :]
        summarized, extracted = rest[: 2 * len(rest) // 3], rest[2 * len(rest) // 3 :]
        again = summarized[:50]
        for task, some in (
            ("summarize", summarized),
            ("extract", extracted),
            ("summarize", again),
        ):
            made.submit(task, some)
        made.produce(PRODUCER, single, every_s=seconds / len(single) / 2)
        return self.jobs + len(again), single


def suffered(backlog: Backlog, breaks: Sequence[Break], seconds: float) -> Books:
    """Work the backlog off while everything in `breaks` happens, and check the books."""
    with installation(
        workers=backlog.workers,
        concurrency=backlog.concurrency,
        per_minute=backlog.per_minute,
    ) as made:
        total, single = backlog.submit(made, seconds)
        made.suffer(breaks)
        assert made.accepted() == single
        made.finish()
        books = made.books()
        check(books, made, total, "\n".join(map(str, breaks)))
    return books


def check(books: Books, made: Installation, total: int, story: str) -> None:
    """The promises, held against the database and the providers' own logs."""
    found = books.audit
    assert not made.ended(), "\n".join([*made.ended(), story])
    assert sum(books.states.values()) == total, story
    assert set(books.states) <= {"completed", "failed"}, story
    # A job may have lost its worker too often; nothing else may end it.
    assert set(books.errors) <= {"WorkerLost"}, f"{books.errors}\n{story}"
    assert books.results == books.states["completed"], story
    assert not found.unexplained, "\n".join([*found.unexplained, story])
    lost = found.unrecorded_unexplained
    assert not lost, "\n".join(
        [*map(str, lost), story, made.story({call.document for call in lost})]
    )
    assert not found.unknown_rows, "\n".join([*found.unknown_rows, story])
    assert len(books.refused) <= max(REFUSED_CALLS, REFUSED * books.calls), "\n".join(
        [*books.refused, story]
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first, _, last = str(metafunc.config.getoption("--seeds")).partition("-")
        metafunc.parametrize("seed", range(int(first), int(last or first) + 1))


@pytest.mark.chaos
def test_whatever_breaks_nothing_is_lost_nor_paid_twice_without_a_cause(seed, record_property):
    seconds = 60.0
    breaks = drawn(seed, seconds, every_s=2.0, targets=EVERYTHING, workers=4)
    books = suffered(Backlog(jobs=2_000), breaks, seconds)
    record_property("books", str(books))
    sys.stdout.write(f"\nseed {seed}, {len(breaks)} breaks: {books}\n")


def test_a_few_breaks_lose_nothing_and_pay_nothing_twice_without_a_cause():
    """The short cut, with one of each that matters most."""
    breaks = [
        Break(0.5, "worker", "kill, back soon", 0.2, 0),
        Break(1.5, "sql", "lose a commit's reply", 0.0, 0),
        Break(2.0, "redis", "restart empty", 0.5, 0),
        Break(3.0, "east", "cut", 0.0, 0),
        Break(3.5, "sql", "crash", 0.3, 0),
        Break(5.0, "redis", "cut", 0.0, 0),
        Break(5.5, "west", "429", 2.0, 0),
    ]
    suffered(Backlog(jobs=120, workers=2), breaks, 6.0)


@pytest.mark.chaos
def test_twenty_killed_workers_cost_no_job_and_only_the_calls_that_were_in_flight():
    seconds = 75.0
    breaks = drawn(
        1,
        seconds,
        every_s=2.8,
        targets=["worker"],
        workers=6,
        only={"kill", "kill, back soon"},
    )
    assert len(breaks) >= 20
    backlog = Backlog(jobs=5_000, workers=6, per_minute=1_500.0)
    books = suffered(backlog, breaks, seconds)
    assert books.audit.extra <= len(breaks) * backlog.concurrency


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["restart", "restart empty"])
def test_a_broker_that_is_killed_again_and_again_costs_no_job_with_its_data_or_without(kind):
    seconds = 70.0
    breaks = [Break(2.0 + 6.5 * n, "redis", kind, 0.5 + 0.3 * n, 0) for n in range(10)]
    books = suffered(Backlog(jobs=2_000), breaks, seconds)
    assert books.audit.extra == 0
