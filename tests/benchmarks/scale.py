"""A batch of 100,000 short documents: what its size costs, from the folder to the last result.

    PYTHONPATH=tests python -m benchmarks.scale [--documents N] [--database postgresql] [--workers N]
        [--done N] [--minutes M]

Real commands, worker processes, broker and database; a simulated provider without latency and limits, so
that what is measured is our own work. Every tenth of the batch is a line: what has to stay the same
from the first to the last is `ms/job` (CPU of the workers; the wall also has whatever else the machine does),
the memory of the workers (`RSS`, each) and of the broker, and what a look at the batch takes: `status` is
its query, `watch` all that one refresh asks, `command` is the CPU of `llmtasks status --json` beyond its
start (what the same command needs for an id that nothing has).

`--done` writes the ends of the first N jobs straight into the database: the last ones of a large batch cost
little time then. Memory of workers and broker is that of the jobs that were really run.

Last, a second batch is cancelled while nobody works, and a writer beside it tells how long it had to wait.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
from support.databases import running_postgres
from support.machine import cpu_seconds
from support.simulated import simulated
from support.stack import Stack, eventually, provider
from support.valkey import running_valkey

from llmtasks.jobs import JobState
from llmtasks.store import batches, workers
from llmtasks.store.engine import SQLITE_FILE, epoch
from llmtasks.store.tables import jobs, provider_calls, results, turns

#: Lines of the table.
PARTS = 10
#: Seconds between two looks; of a command there are fewer, because it starts an interpreter.
SAMPLE_S, COMMAND_S = 3.0, 20.0
#: Looks at a batch that has ended, which is when most is counted.
LOOKS = 10
#: Seconds without a completed job after which a run is given up.
STALLED_S = 120.0
#: Files of one folder.
_PER_FOLDER = 1_000
#: Calls a program's `main` and says at its end what that took. The peak is of this program alone.
_MEASURED = """
import atexit, json, pathlib, re, sys, time
began, spent = time.monotonic(), pathlib.Path(sys.argv.pop(1))

def tell():
    peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())
    said = {"peak_mb": int(peak[1]) / 1024, "cpu_s": time.process_time()}
    spent.write_text(json.dumps(said | {"wall_s": time.monotonic() - began}))

atexit.register(tell)
from llmtasks.cli import main
main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Who works, with so many jobs at once each, for how long at most, and how much was done before."""

    workers: int
    concurrency: int
    minutes: float
    done: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a command took, without the start of its interpreter in `wall_s`; its most memory in MB."""

    peak_mb: float
    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look while the batch is worked off; seconds and MB. CPU and memory are of the workers."""

    at: float
    completed: int
    cpu_s: float
    rss_mb: tuple[float, ...]
    broker_mb: float
    keys: int
    database_mb: float
    wal_mb: float
    status_s: float
    watch_s: float
    command_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """A batch that was cancelled by a command, and the longest that a writer beside it waited, in seconds."""

    jobs: int
    spent: Spent
    writes: int
    longest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that was measured. `ended_status_s` are looks at the batch when it has ended, in seconds.

    `keys`: of the broker at the end, by kind: how many, MB, how many of them never expire.
    """

    documents: int
    database: str
    added: Spent
    submitted: Spent
    samples: Sequence[Sample]
    ended_status_s: Sequence[float]
    ended_command: Spent
    start: Spent
    keys: Mapping[str, tuple[int, float, int]]
    cancelled: Cancelled
    status: Mapping[str, Any]


class Scale:
    """One installation and one batch of many documents."""

    def __init__(self, closing: contextlib.ExitStack, count: int, database_url: str | None) -> None:
        self._closing, self._count = closing, count
        self._home = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        self._broker = closing.enter_context(running_valkey())
        self._client = closing.enter_context(redis.Redis.from_url(self._broker.url))
        simulator = closing.enter_context(simulated(latency=0))
        self._stack = Stack(
            self._home / "home",
            broker_url=self._broker.url,
            database_url=database_url,
            providers=[provider(simulator.openai_url)],
            # A busy machine must not look like a dead worker, nor a long queue like a lost message.
            settings={"delivery": {"lease_s": 30.0, "resend_after_s": 30.0}},
        )
        closing.callback(self._stack.close)
        self._is_sqlite = database_url is None

    def run(self, how: How, report: Callable[[str], None]) -> Result:
        """Everything, in the order of a user's day."""
        folder = self._documents()
        added, _ = self._measured("documents", "add", str(folder))
        report(f"documents add  {_said(added)}")
        submitted, printed = self._measured("submit", "summarize", "--all", "--json")
        report(f"submit --all   {_said(submitted)}")
        batch = json.loads(printed)["batch_id"]
        self._done(batch, how.done)
        start, _ = self._measured("status", "nothing-has-this-id", code=2)
        samples = self._worked_off(batch, start, how, report)
        ended = [_timed(lambda: self._stack.status(batch))[0] for _ in range(LOOKS)]
        command, _ = self._measured("status", batch, "--json")
        keys = self._keys()
        return Result(
            documents=self._count,
            database="sqlite" if self._is_sqlite else "postgresql",
            added=added,
            submitted=submitted,
            samples=samples,
            ended_status_s=ended,
            ended_command=command,
            start=start,
            keys=keys,
            status=self._stack.status(batch),
            cancelled=self._cancelled(),
        )

    def _documents(self) -> Path:
        folder = self._home / "documents"
        for number in range(self._count):
            if number % _PER_FOLDER == 0:
                inner = folder / f"{number // _PER_FOLDER:04}"
                inner.mkdir(parents=True)
            text = (
                f"Report {number:06} of the harbour office. " + "A boat with barrels of salt. " * 8
            )
            (inner / f"{number:06}.txt").write_text(text)
        return folder

    def _done(self, batch: str, count: int) -> None:
        """Give the first jobs of a batch the rows that they would have had they been run ten minutes ago."""
        then = epoch() - 600.0
        columns = (jobs.c.job_id, jobs.c.batch_id)
        first = (
            sa.select(jobs.c.seq).where(jobs.c.batch_id == batch).order_by(jobs.c.seq).limit(count)
        )
        of_first = jobs.c.seq.in_(first)
        same = {"provider": "sim", "model": "model-sim", "created_at": then}
        used = {"input_tokens": 200, "output_tokens": 60, "cached_input_tokens": 0}
        text = "A boat with barrels of salt came in and was counted. " * 5
        call = {
            "call_id": jobs.c.job_id,
            "fence": 1,
            "latency_s": 0.1,
            "outcome": "ok",
            "answer": text,
        }
        result = {"tenant": jobs.c.tenant, "output": text, "cached": False, "seconds": 0.1}
        with self._stack.database.write() as connection:
            for table, own in ((provider_calls, call), (results, result)):
                values = {"answer_key": jobs.c.job_id, **same, **used, **own}
                row = [
                    value
                    if isinstance(value, sa.ColumnElement)
                    else sa.literal(value, table.c[name].type)
                    for name, value in values.items()
                ]
                connection.execute(
                    sa.insert(table).from_select(
                        ["job_id", "batch_id", *values], sa.select(*columns, *row).where(of_first)
                    )
                )
            connection.execute(
                sa.update(jobs)
                .where(of_first)
                .values(
                    state=JobState.COMPLETED.value,
                    fence=1,
                    attempts=1,
                    worker_id="earlier",
                    sent_at=then,
                    claimed_at=then,
                    finished_at=then,
                )
            )

    def _measured(self, *argv: str, code: int = 0) -> tuple[Spent, str]:
        """Run a command; what it took, and what it printed."""
        told = self._home / "spent.json"
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(told), *argv],
            env=self._stack.env,
            cwd=self._stack.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr[-2_000:]
        return Spent(**json.loads(told.read_text())), done.stdout

    # --- the batch -----------------------------------------------------------------------------------

    def _worked_off(
        self, batch: str, start: Spent, how: How, report: Callable[[str], None]
    ) -> list[Sample]:
        with contextlib.ExitStack() as running:
            pids = [
                running.enter_context(self._worker(n, how.concurrency)) for n in range(how.workers)
            ]
            samples: list[Sample] = []
            began = asked = moved = time.monotonic()
            while True:
                command = time.monotonic() - asked >= COMMAND_S
                samples.append(self._look(batch, pids, start if command else None))
                asked = time.monotonic() if command else asked
                if len(samples) < 2 or samples[-1].completed > samples[-2].completed:
                    moved = time.monotonic()
                assert time.monotonic() - moved < STALLED_S, self._stack.status(batch)
                _report_parts(samples, self._count, report)
                if samples[-1].completed >= self._count or moved - began > 60 * how.minutes:
                    return samples
                time.sleep(SAMPLE_S)

    @contextlib.contextmanager
    def _worker(self, number: int, concurrency: int) -> Iterator[int]:
        """A worker process that takes jobs; its pid. No fork of a test's: its memory is its own."""
        log = self._home / f"worker-{number}.log"
        argv = [sys.executable, "-m", "llmtasks", "worker", "--queues", "llm.summarize"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*argv, "--concurrency", str(concurrency)],
                env=self._stack.env,
                cwd=self._stack.home,
                stdout=file,
                stderr=file,
            )
        try:
            eventually(
                lambda: b"worker-ready" in log.read_bytes() or process.poll() is not None, "ready"
            )
            assert process.poll() is None, log.read_text()
            yield process.pid
        finally:
            process.terminate()
            process.wait()

    def _look(self, batch: str, pids: Sequence[int], start: Spent | None) -> Sample:
        db = self._stack.database
        status_s, status = _timed(lambda: self._stack.status(batch))
        at, cpu_s = time.monotonic(), sum(cpu_seconds(pid) for pid in pids)
        more_s, _ = _timed(lambda: (workers.live(db), batches.open_task_types(db, batch)))
        command_s = None
        if start is not None:
            command_s = self._measured("status", batch, "--json")[0].cpu_s - start.cpu_s
        database_mb, wal_mb = self._sizes()
        return Sample(
            at=at,
            completed=status["completed"],
            cpu_s=cpu_s,
            rss_mb=tuple(_rss_mb(pid) for pid in pids),
            broker_mb=self._client.info("memory")["used_memory"] / 2**20,
            keys=self._client.dbsize(),
            database_mb=database_mb,
            wal_mb=wal_mb,
            status_s=status_s,
            watch_s=status_s + more_s,
            command_s=command_s,
        )

    def _sizes(self) -> tuple[float, float]:
        """Of the database and of SQLite's log that is not in it yet, in MB."""
        if self._is_sqlite:
            file = self._stack.home / "data" / SQLITE_FILE
            log = file.with_name(f"{file.name}-wal")
            return file.stat().st_size / 2**20, log.stat().st_size / 2**20
        with self._stack.database.read() as connection:
            size = sa.func.pg_database_size(sa.func.current_database())
            return connection.execute(sa.select(size)).scalar_one() / 2**20, 0.0

    def _keys(self) -> dict[str, tuple[int, float, int]]:
        found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])
        for key in self._client.scan_iter(count=1_000):
            pipe = self._client.pipeline(transaction=False)
            size, ttl = pipe.memory_usage(key).pttl(key).execute()
            kind = found[re.sub(r"[0-9a-f]{8,}[^:]*|\d+", "*", key.decode(errors="replace"))]
            kind[0] += 1
            kind[1] += (size or 0) / 2**20
            kind[2] += ttl == -1
        return {kind: (int(n), mb, int(kept)) for kind, (n, mb, kept) in found.items()}

    # --- the end of another one ----------------------------------------------------------------------

    def _cancelled(self) -> Cancelled:
        _, printed = self._measured("submit", "summarize", "--all", "--fresh", "--json")
        batch = json.loads(printed)["batch_id"]
        stopping, waits = threading.Event(), [0.0]
        writer = threading.Thread(target=self._write_until, args=(stopping, waits))
        writer.start()
        try:
            spent, _ = self._measured("cancel", batch)
        finally:
            stopping.set()
            writer.join()
        return Cancelled(
            jobs=self._stack.status(batch)["cancelled"],
            spent=spent,
            writes=len(waits) - 1,
            longest_s=max(waits),
        )

    def _write(self) -> None:
        with self._stack.database.write() as connection:
            connection.execute(
                sa.insert(turns).values(name=f"writer-{time.monotonic_ns()}", taken_at=0.0)
            )

    def _write_until(self, stopping: threading.Event, waits: list[float]) -> None:
        """Small transactions, as a worker's are, one every hundredth of a second."""
        while not stopping.wait(0.01):
            waits.append(_timed(self._write)[0])


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = action()
    return time.perf_counter() - began, found


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- what is printed -------------------------------------------------------------------------------

HEAD = (
    "  done      jobs/s  ms/job  RSS            broker   keys     database  wal"
    "      status p50/max  watch p50/max  command CPU p50/max ms"
)


def _said(spent: Spent) -> str:
    return f"{spent.wall_s:.1f} s, {spent.cpu_s:.1f} s CPU, {spent.peak_mb:.0f} MB at most"


def _report_parts(samples: Sequence[Sample], count: int, report: Callable[[str], None]) -> None:
    """A line for each tenth of the batch that the last sample is the first to have."""
    if len(samples) < 2:
        report(HEAD)
        return
    size = count / PARTS
    before, now = (int(one.completed / size) for one in samples[-2:])
    for part in range(before + 1, now + 1):
        report(_line(samples, (part - 1) * size, part * size))


def _line(samples: Sequence[Sample], first: float, last: float) -> str:
    inside = [one for one in samples if first <= one.completed <= last] or [samples[-1]]
    first = max(first, samples[0].completed)  # what was done before took nothing
    jobs = last - first
    wall = _at(samples, last, lambda one: one.at) - _at(samples, first, lambda one: one.at)
    cpu = _at(samples, last, lambda one: one.cpu_s) - _at(samples, first, lambda one: one.cpu_s)
    end = inside[-1]
    return (
        f"{last:>8,.0f} {jobs / wall:>8.1f} {1000 * cpu / jobs:>7.2f}"
        f"  {'/'.join(f'{mb:.0f} MB' for mb in end.rss_mb):<13}"
        f" {end.broker_mb:>5.1f} MB {end.keys:>6,} {end.database_mb:>9.1f} MB {end.wal_mb:>5.1f} MB"
        f"  {_ms([one.status_s for one in inside]):<15} {_ms([one.watch_s for one in inside]):<14}"
        f" {_ms([one.command_s for one in inside if one.command_s is not None])}"
    )


def _at(samples: Sequence[Sample], completed: float, value: Callable[[Sample], float]) -> float:
    """A value at the moment when so many jobs were completed, between two samples evenly."""
    for earlier, later in itertools.pairwise(samples):
        if later.completed >= completed and later.completed > earlier.completed:
            share = (completed - earlier.completed) / (later.completed - earlier.completed)
            return value(earlier) + max(0.0, share) * (value(later) - value(earlier))
    return value(samples[-1])


def _ms(seconds: Sequence[float]) -> str:
    """Median and most, in milliseconds."""
    if not seconds:
        return "-"
    return f"{1000 * statistics.median(seconds):.0f}/{1000 * max(seconds):.0f}"


def _summary(one: Result) -> Iterator[str]:
    yield f"at the end: status p50/max {_ms(one.ended_status_s)} ms"
    command = one.ended_command
    beyond = 1000 * (command.cpu_s - one.start.cpu_s)
    yield f"llmtasks status --json: {_said(command)}; {beyond:.0f} ms CPU beyond its start"
    for kind, (keys, mb, kept) in sorted(one.keys.items(), key=lambda item: -item[1][1]):
        yield f"  {keys:>7,} keys {mb:>6.1f} MB  {kept:>7,} for ever  {kind}"
    cancelled = one.cancelled
    yield (
        f"cancel of {cancelled.jobs:,} queued jobs: {_said(cancelled.spent)};"
        f" {cancelled.writes} writes beside it, the longest waited {cancelled.longest_s:.2f} s"
    )


def measure(count: int, database: str, how: How, report: Callable[[str], None]) -> Result:
    """Run it, and report while it runs."""
    with contextlib.ExitStack() as closing:
        url = None
        if database == "postgresql":
            url = closing.enter_context(closing.enter_context(running_postgres()).database())
        found = Scale(closing, count, url).run(how, report)
        for line in _summary(found):
            report(line)
        return found


def main(argv: Sequence[str] | None = None) -> Result:
    """The program."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=32, help="jobs of each worker")
    parser.add_argument("--done", type=int, default=0, help="jobs that had been run before")
    parser.add_argument("--minutes", type=float, default=240.0, help="of work at most")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    options = parser.parse_args(argv)

    def report(line: str) -> None:
        print(line, flush=True)

    how = How(
        workers=options.workers,
        concurrency=options.concurrency,
        minutes=options.minutes,
        done=options.done,
    )
    found = measure(options.documents, options.database, how, report)
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=1))
    return found


if __name__ == "__main__":
    main()
