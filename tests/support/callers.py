"""Callers of a fleet under a clock that they turn themselves: they ask, wait to be woken, call and settle.

Every decision is the real scripts'; wake-up calls are real messages. Only time is simulated: events are
taken in order, and nothing happens between them.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from support.fleet import Fleet

from llmtasks.admission import (
    CONFIRM_ABOVE_S,
    Abandoned,
    Claim,
    Go,
    Outcome,
    RateLimited,
    Succeeded,
    Wait,
)

#: Seconds from a wake-up call to the question that follows it.
_LATENCY_S = 0.002


@dataclass(slots=True)
class Job:
    """One question and what became of it. Times are seconds of the fleet's clock.

    `error` is what a test knows of its estimate, `number` is by when it came. `asked` are the times of its
    scripts until it was granted, `woken` how many of them followed a call.
    """

    tokens: tuple[int, int]
    process: str = "process"
    tenant: str = "default"
    priority: int = 0
    providers: tuple[str, ...] = ()
    exact: bool = True
    error: float = 1.0
    waiter: str = ""
    number: int = 0
    asked: list[float] = field(default_factory=list)
    woken: int = 0
    provider: str = ""
    granted: float = 0.0
    start: float = 0.0
    returned: bool = False
    dead: bool = False

    @property
    def total(self) -> int:
        return sum(self.tokens)

    @property
    def waited(self) -> float:
        """From the first question to the start of the call."""
        return self.start - self.asked[0]


Slots = Callable[[], Job | None]


#: What a provider does with a call that arrives now: how many seconds it takes, and how it ends.
Answer = Callable[[Job], tuple[float, Outcome]]

ANSWERED: tuple[float, Outcome] = (1.0, Succeeded(usage=None))


class Callers:
    """Runs jobs, each until it has an answer: one that is rate limited is asked again."""

    def __init__(self, fleet: Fleet, answer: Answer = lambda _job: ANSWERED) -> None:
        self.fleet = fleet
        self.granted: list[Job] = []
        self.scripts = 0
        self.refused = 0
        self._answer = answer
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._timers: dict[str, tuple[Job, int]] = {}
        self._slots: dict[str, Slots] = {}
        self._attempts: dict[str, int] = defaultdict(int)
        self._bells = fleet.subscription()
        self._processes = set[str]()
        self._listen("process")

    def close(self) -> None:
        self._bells.close()

    def at(self, time: float, what: Callable[[], None]) -> None:
        """Do it at a time of the fleet's clock."""
        heapq.heappush(self._events, (time, next(self._order), what))

    def start(self, job: Job, then: Slots = lambda: None) -> Job:
        """Ask now; when the call has ended the slot that it took goes on with `then()`."""
        job.number = next(self._order)
        job.waiter = f"{job.process}.{job.number}"
        self._listen(job.process)
        self._slots[job.waiter] = then
        self._ask(job)
        return job

    def start_at(self, time: float, job: Job, then: Slots = lambda: None) -> Job:
        self.at(time, lambda: void(self.start(job, then)))
        return job

    def slots(self, count: int, jobs: Iterator[Job]) -> None:
        """So many slots that work through the jobs."""
        for _ in range(count):
            if (job := next(jobs, None)) is not None:
                self.start(job, lambda: next(jobs, None))

    def run(self, until: float | None = None) -> None:
        """Let time pass, to `until` or to the last event."""
        while self._events and (until is None or self._events[0][0] <= until):
            time, _, what = heapq.heappop(self._events)
            if time > self.fleet.now:
                self.fleet.set_clock(time)
            what()
        if until is not None and until > self.fleet.now:
            self.fleet.set_clock(until)

    def _listen(self, process: str) -> None:
        if process not in self._processes:
            self._processes.add(process)
            self._bells.subscribe(f"{self.fleet.prefix}:wake:{process}")

    def kill(self, process: str, jobs: Iterable[Job]) -> None:
        """The process is gone, and the jobs that wait in it: nobody hears what it is told."""
        self._bells.unsubscribe(f"{self.fleet.prefix}:wake:{process}")
        for job in jobs:
            self.die(job)

    def die(self, job: Job) -> None:
        """Its process hangs: it says nothing more, and what it is told is not heard to be in vain."""
        job.dead = True
        self._timers.pop(job.waiter, None)

    def claim(self, job: Job) -> Claim:
        self._attempts[job.waiter] += 1
        return self.fleet.claim(
            attempt_id=f"{job.waiter}-{self._attempts[job.waiter]}",
            waiter=job.waiter,
            tokens=job.tokens,
            tenant=job.tenant,
            priority=job.priority,
            providers=job.providers or self.fleet.names,
            exact=job.exact,
            returned=job.returned,
        )

    def _ask(self, job: Job) -> None:
        if job.dead:
            return
        self._timers.pop(job.waiter, None)
        job.asked.append(self.fleet.now)
        self.scripts += 1
        match self.fleet.admit(self.claim(job)):
            case Go() as go:
                self._granted(job, go)
            case Wait(delay=delay):
                self._ask_in(delay, job)
            case decision:
                raise AssertionError(decision)
        self._wake()

    def _ask_in(self, seconds: float, job: Job) -> None:
        """Set the job's timer; one that was set before is none any more."""
        timer = next(self._order)
        self._timers[job.waiter] = (job, timer)
        self.at(self.fleet.now + seconds, lambda: self._timer(job, timer))

    def _timer(self, job: Job, timer: int) -> None:
        if self._timers.get(job.waiter) == (job, timer):
            self._ask(job)

    def _granted(self, job: Job, go: Go) -> None:
        job.provider, job.granted = go.provider, self.fleet.now
        job.start = self.fleet.now + go.delay
        self.granted.append(job)
        self.at(job.start, lambda: self._call(job, go))

    def _call(self, job: Job, go: Go) -> None:
        if go.delay > CONFIRM_ABOVE_S and self.fleet.confirm(go) > 0:
            self.granted.remove(job)
            self._settle(go, Abandoned())
            job.returned = True
            self._ask(job)
            return
        seconds, outcome = self._answer(job)
        self.at(self.fleet.now + seconds, lambda: self._end(job, go, outcome))

    def _end(self, job: Job, go: Go, outcome: Outcome) -> None:
        self._settle(go, outcome)
        if isinstance(outcome, RateLimited):
            self.refused += 1
            self.granted.remove(job)
            job.returned = True
            self._ask(job)
            return
        if (following := self._slots[job.waiter]()) is not None:
            self.start(following, self._slots[job.waiter])

    def _settle(self, go: Go, outcome: Outcome) -> None:
        self.scripts += 1
        self.fleet.settle(go, outcome)
        self._wake()

    def _wake(self) -> None:
        """Hear what the last script said."""
        for waiter in self._heard():
            if (waiting := self._timers.get(waiter)) is not None:
                waiting[0].woken += 1
                self._ask_in(_LATENCY_S, waiting[0])

    def _heard(self) -> list[str]:
        self._bells.ping()
        heard = []
        while True:
            message = self._bells.get_message(timeout=5.0)
            if message is None or message["type"] == "pong":
                return heard
            if message["type"] == "message":
                heard.append(message["data"].decode())


def void(_value: object) -> None:
    """For a lambda that is called for its effect."""


def copies(job: Job, count: int) -> Iterator[Job]:
    """The same job again and again."""
    return (replace(job, asked=[]) for _ in range(count))
