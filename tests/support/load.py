"""A backlog under a scenario: an installation of many workers, providers that enforce their quota, and
what became of that quota. Everything is real and its own; what is said of a quota comes from the
provider's own log.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from support import usage
from support.databases import running_postgres
from support.machine import busy_seconds, commands, cpu_seconds, spent
from support.simulated import Simulated, simulated
from support.stack import Process, Stack, eventually, provider
from support.valkey import Valkey, running_valkey

from llmtasks import planning
from llmtasks.admission import ProviderState, fleet_of
from llmtasks.settings import Settings, load
from llmtasks.store import documents
from llmtasks.store.documents import NewDocument
from llmtasks.task_types import Document

LATENCY_S, JITTER_S = 0.5, 0.2
#: Left out of the measured window at both ends, at most: seconds of the ramps.
RAMP_S = 20.0
#: A provider that allows less than it says is measured after so many seconds, at the latest.
ADAPTED_S = 30.0
SAMPLE_S = 0.2
#: What a limit is called in a provider's settings, and in the simulator's options.
SETTING = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "input": "input_tokens_per_minute",
    "output": "output_tokens_per_minute",
}
#: What the simulator quotes of a document, and the digest in brackets behind it, in characters.
QUOTED = 251
#: Longer than that, so that all answers have the same length.
_SENTENCE = "The harbour office kept a record of every ship that came in during the year, " * 4
#: Of the same words in all sizes, so that an estimate is as right for large documents as for small ones.
_LINES = (
    "A boat with seven barrels of salt.",
    "Three masts seen in the morning fog.",
    "Two letters for the keeper were left.",
    "No wind until late in the evening.",
)
#: Tokens of the two messages of a question beside their text, as the simulator counts.
_OF_MESSAGES = 8


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is asked of whom.

    The small jobs have `words`, a `large_share` of the jobs `large` times as many (the instructions and
    the answer do not grow). `limits` are shares of what the backlog needs, by dimension; the smallest
    binds. An answer has about 60 tokens and may have `max_output`. One provider for each of the `weights`.
    `real` is what the provider allows of what it is configured to, and `told` whether its answers say so;
    `truth` the tokens it counts for one that is estimated.
    """

    about: str
    words: int = 120
    large: float = 1.0
    large_share: float = 0.0
    kind: str = "openai"
    max_output: int = 128
    limits: Mapping[str, float] = field(default_factory=lambda: {"requests": 1.0})
    weights: tuple[float, ...] = (1.0,)
    real: float = 1.0
    told: bool = True
    truth: float = 1.0


SCENARIOS = {
    "equal": Scenario(about="small equal jobs, requests limited"),
    "tokens": Scenario(about="small equal jobs, tokens limited", limits={"tokens": 1.0}),
    "large": Scenario(
        about="3 % of the jobs 20 times bigger, tokens limited",
        large=66.0,
        large_share=0.03,
        limits={"tokens": 1.0},
    ),
    "huge": Scenario(
        about="one job in 330 takes a fifth of a minute's tokens",
        large=1200.0,
        large_share=0.003,
        limits={"tokens": 1.0},
    ),
    "weights": Scenario(about="two providers of equal limits, weights 3 : 1", weights=(3.0, 1.0)),
    "apart": Scenario(
        about="input and output apart, output binds",
        kind="anthropic",
        limits={"input": 1.1, "output": 1.0},
    ),
    "loose": Scenario(
        about="output binds, answers may have 16 times what they have",
        kind="anthropic",
        max_output=1024,
        limits={"output": 1.0},
    ),
    "half": Scenario(
        about="the provider allows half of what is configured and does not say so",
        real=0.5,
        told=False,
    ),
    "stated": Scenario(
        about="the provider allows half of what is configured and says so", real=0.5
    ),
    "low": Scenario(about="estimates 5 % too low", limits={"tokens": 1.0}, truth=1.05),
    "high": Scenario(about="estimates 10 % too high", limits={"tokens": 1.0}, truth=0.9),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How much, and by whom: `seconds` of backlog, `concurrency` jobs of each worker.

    `pace` is how many jobs a second a provider's quota allows; 15 are a fifth of what two cores can do.
    `burst_s` is what the provider lets pass at once: a second of its limit, as providers do, or more.
    """

    seconds: float
    pace: float = 15.0
    workers: int = 8
    concurrency: int = 32
    database: str = "sqlite"
    burst_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured; shares are fractions, times seconds. By provider where it is a tuple.

    `used`: of the binding limit, in the steady window. `ramp_s`: what was lost before it, in seconds of
    the limit. `refused`: calls of that window answered 429. `asked`: share of the window in which
    admission had promised quota beyond now. `blocked`: share in which a provider was out. `ratio`: median
    share of its limits that admission found to be taken. `truth`: input tokens counted for each one
    estimated. `late`: median and 99th percentile of how far calls are behind an even schedule (jobs of one
    size at one provider). `peak_s`: the most that was taken at once, in seconds of the limit, so that in
    any W seconds at most W + `peak_s` seconds of it were. `others_cpu`: cores that were busy with something
    else. `queue`, `running`: medians.
    """

    scenario: str
    jobs: int
    completed: int
    seconds: float
    window_s: float
    used: tuple[float, ...]
    ramp_s: float
    refused: float
    calls_per_job: float
    asked: tuple[float, ...]
    blocked: float
    ratio: tuple[float, ...]
    truth: float
    late: tuple[float, float] | None
    peak_s: float
    scripts_per_job: float
    commands_per_job: float
    script_us: float
    worker_ms_per_job: float
    others_cpu: float
    queue: int
    running: int
    slots: int


def measure(names: Sequence[str], setup: Setup) -> Iterator[Result]:
    """One result for each scenario, as it ends."""
    with _databases(setup.database) as made:
        for name in names:
            with contextlib.ExitStack() as closing:
                yield _Load(name, setup, closing, made(closing)).run()


@contextlib.contextmanager
def _databases(kind: str) -> Iterator[Callable[[contextlib.ExitStack], str | None]]:
    """Makes one for each scenario: its url; None for a SQLite file of the installation's."""
    if kind == "sqlite":
        yield lambda _closing: None
        return
    with running_postgres() as server:
        yield lambda closing: closing.enter_context(server.database())


# --- what is asked ---------------------------------------------------------------------------------


def texts(scenario: Scenario, count: int) -> list[str]:
    """Different documents; the large ones evenly among the small ones."""
    every = round(1 / scenario.large_share) if scenario.large_share else 0
    return [
        _text(number, scenario.words * (scenario.large if every and number % every == 0 else 1))
        for number in range(count)
    ]


def _text(number: int, words: float) -> str:
    body = " ".join(_LINES[line % len(_LINES)] for line in range(int(words / 7)))
    return f"{number:06} {_SENTENCE}. {body}"


@dataclass(frozen=True, kw_only=True)
class Need:
    """Means of the jobs: estimated tokens of the input, tokens of the answer, those it may have, characters
    asked.
    """

    input: float
    output: float
    max_output: int
    characters: float

    def chars_per_token(self, truth: float) -> float:
        """How the simulator has to count so that it finds `truth` times the estimate."""
        return self.characters / (truth * self.input - _OF_MESSAGES)

    def per_minute(self, dimension: str, pace: float) -> float:
        """What `pace` jobs a second need of it."""
        of_job = {
            "requests": 1.0,
            "tokens": self.input + self.max_output,
            "input": self.input,
            "output": self.output,
        }
        return of_job[dimension] * pace * 60


def need(settings: Settings, found: Sequence[str]) -> Need:
    """What the planner estimates for these documents."""
    plan = planning.plan(settings, "summarize", {})
    assert plan.max_output_tokens is not None
    requests = [plan.request(Document(f"{n}", text)) for n, text in enumerate(found)]
    tokens = statistics.mean(max(plan.input_tokens(one).values()) for one in requests)
    characters = statistics.mean(len(one.system) + len(one.prompt) for one in requests)
    return Need(
        input=tokens,
        output=QUOTED * tokens / characters,
        max_output=plan.max_output_tokens,
        characters=characters,
    )


# --- what happens meanwhile ------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One look: seconds of quota promised by each provider and the share of its limits in use, whether
    one is out, messages queued.
    """

    at: float
    ahead: tuple[float, ...]
    ratio: tuple[float, ...]
    out: bool
    queued: int


class Sampler:
    """Looks at admission and the queue, several times a second."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.samples: list[Sample] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        fleet = fleet_of(self._settings)
        with redis.Redis.from_url(self._settings.broker_url) as broker:
            while not self._stopping.is_set():
                providers = await fleet.status()
                self.samples.append(
                    Sample(
                        at=time.time(),
                        ahead=tuple(max(d.ahead_s for d in p.dimensions) for p in providers),
                        ratio=tuple(p.effective_ratio for p in providers),
                        out=any(p.state is not ProviderState.OK for p in providers),
                        queued=sum(broker.llen(key) for key in broker.keys("llm.summarize*")),
                    )
                )
                await asyncio.sleep(SAMPLE_S)
        await fleet.aclose()


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What was read while the backlog was worked off, and after it."""

    logs: Sequence[Sequence[Mapping[str, Any]]]
    samples: Sequence[Sample]
    running: Sequence[int]
    completed: int
    seconds: float
    worker_cpu_s: float
    others_cpu_s: float
    ran: Mapping[str, tuple[int, float]]


# --- one scenario ----------------------------------------------------------------------------------


class _Load:
    """An installation under one scenario."""

    def __init__(
        self,
        name: str,
        setup: Setup,
        closing: contextlib.ExitStack,
        database_url: str | None,
    ) -> None:
        self.name, self.setup, self.closing = name, setup, closing
        self.scenario = SCENARIOS[name]
        self.database_url = database_url
        self.broker: Valkey = closing.enter_context(running_valkey())
        self.admission: Valkey = closing.enter_context(running_valkey())
        self.home = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="load-")))
        pace = setup.pace * len(self.scenario.weights) * self.scenario.real
        self.found = texts(self.scenario, int(pace * setup.seconds))
        draft = self._stack([provider("http://127.0.0.1:1/v1", kind=self.scenario.kind)], "draft")
        self.need = need(load(draft.env, draft.home), self.found)
        self.limits = {
            dimension: share * self.need.per_minute(dimension, setup.pace)
            for dimension, share in self.scenario.limits.items()
        }

    def run(self) -> Result:
        """Start everything, submit, wait, and work out what became of the quota."""
        simulators = [self._simulator() for _ in self.scenario.weights]
        stack = self._stack(
            [
                self._provider(simulator, number, weight)
                for number, (simulator, weight) in enumerate(
                    zip(simulators, self.scenario.weights, strict=True)
                )
            ],
            "home",
        )
        _add(stack, self.found)
        fleet = self._started(stack)
        return self._result(self._record(stack, simulators, fleet))

    def _simulator(self) -> Simulated:
        limits = {SETTING[d]: self.scenario.real * limit for d, limit in self.limits.items()}
        return self.closing.enter_context(
            simulated(
                latency=LATENCY_S,
                jitter=JITTER_S,
                chars_per_token=self.need.chars_per_token(self.scenario.truth),
                burst=self.setup.burst_s,
                limit_headers=self.scenario.told,
                **limits,
            )
        )

    def _provider(self, simulator: Simulated, number: int, weight: float) -> dict[str, Any]:
        kind = self.scenario.kind
        return provider(
            simulator.openai_url if kind == "openai" else simulator.anthropic_url,
            name=f"sim{number}",
            kind=kind,
            weight=weight,
            **{SETTING[d]: limit for d, limit in self.limits.items()},
        )

    def _stack(self, entries: Sequence[Mapping[str, Any]], name: str) -> Stack:
        stack = Stack(
            self.home / name,
            broker_url=self.broker.url,
            database_url=self.database_url,
            providers=entries,
            settings={
                "redis": {"url": self.admission.url},
                "tasks.summarize": {"max_output_tokens": self.scenario.max_output},
                "delivery": {"lease_s": 30.0, "resend_after_s": 10.0},
                "metrics": {"enabled": False},
            },
        )
        self.closing.callback(stack.close)
        return stack

    def _started(self, stack: Stack) -> list[Process]:
        """All workers at once, then each of them ready."""
        argv = [sys.executable, "-m", "llmtasks", "worker", "--queues", "llm.summarize"]
        argv += ["--concurrency", str(self.setup.concurrency)]
        fleet = [stack.start(argv, "worker") for _ in range(self.setup.workers)]
        for process in fleet:
            eventually(lambda p=process: "worker-ready" in p.output() or not p.running, "ready")
            assert process.running, process.output()
        return fleet

    def _record(
        self, stack: Stack, simulators: Sequence[Simulated], fleet: Sequence[Process]
    ) -> _Record:
        workers = [process.pid for process in fleet]
        servers = [self.broker.process.pid, self.admission.process.pid]
        ours = [*workers, *servers, *(simulator.pid for simulator in simulators)]
        sampler = Sampler(load(stack.env, stack.home))
        with redis.Redis.from_url(self.admission.url) as client:
            before = commands(client), _cpu(workers), _cpu(ours), busy_seconds()
            began = time.monotonic()
            sampler.start()
            batch = stack.submit("summarize", "--all")
            running: list[int] = []
            while (status := stack.status(batch))["state"] == "running":
                running.append(status["running"])
                time.sleep(0.5)
            sampler.stop()
            return _Record(
                logs=[simulator.log() for simulator in simulators],
                samples=sampler.samples,
                running=running,
                completed=status["completed"],
                seconds=time.monotonic() - began,
                worker_cpu_s=_cpu(workers) - before[1],
                others_cpu_s=(busy_seconds() - before[3]) - (_cpu(ours) - before[2]),
                ran=spent(before[0], commands(client)),
            )

    # --- what it means -----------------------------------------------------------------------------

    def _result(self, record: _Record) -> Result:
        granted = sorted(line["at"] for log in record.logs for line in log if line["granted"])
        assert granted, f"{self.name}: no call was ever granted"
        start, end = self._window(granted)
        lines = [line for log in record.logs for line in log]
        steady = [line for line in lines if start <= line["at"] < end]
        seen = [sample for sample in record.samples if start <= sample.at < end]
        uses = [self._use(log, start, end) for log in record.logs]
        scripts, script_us = record.ran.get("evalsha", (0, 0.0))
        jobs, looks = len(self.found), len(record.samples)
        even = self.scenario.large == 1.0 and len(record.logs) == 1
        return Result(
            scenario=self.name,
            jobs=jobs,
            completed=record.completed,
            seconds=record.seconds,
            window_s=end - start,
            used=tuple(use.share for use in uses),
            ramp_s=max(
                (1.0 - self._use(log, granted[0], start).share) * (start - granted[0])
                for log in record.logs
            ),
            refused=_share(line["status"] == 429 for line in steady),
            calls_per_job=len(lines) / jobs,
            asked=tuple(
                _share(sample.ahead[number] > 0 for sample in seen)
                for number in range(len(record.logs))
            ),
            blocked=_share(sample.out for sample in seen),
            ratio=tuple(
                statistics.median([sample.ratio[number] for sample in seen] or [1.0])
                for number in range(len(record.logs))
            ),
            truth=statistics.mean(line["input_tokens"] for line in lines) / self.need.input,
            late=_late([at for at in granted if start <= at < end]) if even else None,
            peak_s=max(use.peak for use in uses),
            scripts_per_job=(scripts - looks) / jobs,
            commands_per_job=sum(calls for calls, _ in record.ran.values()) / jobs,
            script_us=script_us,
            worker_ms_per_job=1000 * record.worker_cpu_s / jobs,
            others_cpu=record.others_cpu_s / record.seconds,
            queue=int(statistics.median([sample.queued for sample in seen] or [0])),
            running=int(statistics.median(record.running or [0])),
            slots=self.setup.workers * self.setup.concurrency,
        )

    def _use(self, log: Sequence[Mapping[str, Any]], start: float, end: float) -> usage.Use:
        """Of the limit that binds: the one that is used most."""
        return max(
            (
                usage.use(usage.charges(log, d), self.scenario.real * limit, start, end)
                for d, limit in self.limits.items()
            ),
            key=lambda use: use.share,
        )

    def _window(self, granted: Sequence[float]) -> tuple[float, float]:
        """From the first grant to the last, without the ramps."""
        first, last = granted[0], granted[-1]
        ramp = min(RAMP_S, (last - first) / 5)
        if self.scenario.real < 1:
            return first + min(ADAPTED_S, (last - first) / 2), last - ramp
        return first + ramp, last - ramp


def _share(flags: Iterator[bool]) -> float:
    found = list(flags)
    return sum(found) / max(1, len(found))


def _cpu(pids: Sequence[int]) -> float:
    return sum(cpu_seconds(pid) for pid in pids)


def _late(granted: Sequence[float]) -> tuple[float, float]:
    """How far arrivals are behind the latest even schedule that none of them is before."""
    step = (granted[-1] - granted[0]) / (len(granted) - 1)
    offsets = [at - number * step for number, at in enumerate(granted)]
    earliest = min(offsets)
    late = sorted(offset - earliest for offset in offsets)
    return statistics.median(late), late[int(0.99 * len(late))]


def _add(stack: Stack, found: Sequence[str]) -> None:
    new = [
        NewDocument(
            document_id=f"doc-{number:06}",
            text=text,
            content_hash=hashlib.sha256(text.encode()).hexdigest(),
        )
        for number, text in enumerate(found)
    ]
    documents.add(stack.database, new)
