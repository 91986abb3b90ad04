"""An installation in which everything may break, and the hand that breaks it.

Workers reach Valkey, PostgreSQL and two simulated providers through proxies of their own; the test looks past
them. Everything is real, and ended by its own pid.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from support import ledger
from support.databases import PostgresCluster, postgres_cluster, started
from support.ledger import Audit, Struck
from support.proxy import Proxy
from support.schedule import Break
from support.simulated import Simulated, simulated
from support.stack import Process, Stack, eventually, provider
from support.valkey import RestartableValkey

from llmtasks.jobs import JobState
from llmtasks.store import documents
from llmtasks.store.documents import NewDocument
from llmtasks.store.engine import Database
from llmtasks.store.tables import jobs, provider_calls, results

#: Seconds: a worker's lease, a call's deadline, and how long a call takes.
LEASE_S, TIMEOUT_S = 3.0, 6.0
LATENCY_S, JITTER_S = 0.3, 0.4
#: Seconds of its limit that a provider may be asked for at once, and that it lets pass at once: a second more
#: for calls that a busy machine sends late.
BURST_S, LATE_S = 0.8, 1.2
#: The two providers: their names and kinds.
PROVIDERS = {"east": "openai", "west": "anthropic"}
#: Seconds after which a provider that got late calls at once has caught up.
_CAUGHT_UP_S = 10.0
#: Seconds for which an answer may be unwritten: a stop or an outage, and what is retried after it.
_UNWRITTEN_S = 15.0
#: Seconds for the database to be asked anew while it is away.
_AGAIN_S = 0.1
#: How many calls a fault of a provider strikes that is not one of time.
_STRIKES = 5
#: Breaks that may go on at once.
_HANDS = 16
_FULL = b"CONFIG SET maxmemory 1mb"
_NOT_FULL = b"CONFIG SET maxmemory 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The end: what became of every job, and what was paid for them. `refused` are calls beyond a provider's
    limit that were not held back on their way by what was broken.
    """

    states: dict[str, int]
    errors: dict[str, int]
    results: int
    crashes: int
    audit: Audit
    calls: int
    refused: list[str]


class Installation:
    """Start with `installation(...)`.

    Args:
        workers: Processes.
        concurrency: Jobs of each.
        per_minute: The limit of each provider, in requests.
    """

    def __init__(
        self,
        ending: contextlib.ExitStack,
        home: Path,
        *,
        workers: int,
        concurrency: int,
        per_minute: float,
    ) -> None:
        self._ending = ending
        self._concurrency = concurrency
        self.per_minute = per_minute
        # Longer than all that its threads start: PostgreSQL ends with the thread that started it.
        self._hands = ThreadPoolExecutor(max_workers=_HANDS)
        ending.callback(self._hands.shutdown)
        self.redis = RestartableValkey(keeps=True)
        ending.callback(self.redis.close)
        self.cluster: PostgresCluster = ending.enter_context(postgres_cluster())
        server = started(self.cluster)
        self._database_url = ending.enter_context(server.database())
        self.sims: dict[str, Simulated] = {
            name: ending.enter_context(
                simulated(
                    latency=LATENCY_S,
                    jitter=JITTER_S,
                    requests_per_minute=per_minute,
                    burst=BURST_S + LATE_S,
                    limit_headers=False,
                )
            )
            for name in PROVIDERS
        }
        self.proxies = {
            "redis": self._proxy(self.redis.port),
            "sql": self._proxy(server.port),
            **{name: self._proxy(_port(sim.url)) for name, sim in self.sims.items()},
        }
        self.stack = self._stack(home, server.port)
        self.database = Database(self._database_url, 4)
        ending.callback(self.database.close)
        self.struck: list[Struck] = []
        self._breaking: list[Future[None]] = []
        self._over = threading.Event()
        ending.callback(self._leave_alone)
        self._in_hand: list[tuple[float, int, frozenset[str]]] = []
        self._hands_on = [threading.Lock() for _ in range(workers)]
        #: What workers said that ended before they were ready.
        self.never_ready: list[str] = []
        self.workers = list(self._hands.map(lambda _: self._worker(), range(workers)))

    def _proxy(self, port: int) -> Proxy:
        return self._ending.enter_context(Proxy(port))

    def _stack(self, home: Path, sql_port: int) -> Stack:
        broker = f"redis://127.0.0.1:{self.proxies['redis'].port}"
        through = self._database_url.replace(f":{sql_port}/", f":{self.proxies['sql'].port}/")
        stack = Stack(
            home,
            broker_url=f"{broker}/0",
            database_url=through,
            providers=[
                provider(
                    self._url(name),
                    name=name,
                    kind=kind,
                    requests_per_minute=self.per_minute,
                    burst_s=BURST_S,
                    timeout_s=TIMEOUT_S,
                )
                for name, kind in PROVIDERS.items()
            ],
            settings={
                "redis": {"url": f"{broker}/1"},
                "delivery": {"lease_s": LEASE_S, "resend_after_s": 2.0, "max_crashes": 8},
                "retry": {"max_attempts": 20, "base_s": 0.2, "max_s": 3.0},
                "worker": {"drain_s": 2.0},
                "metrics": {"enabled": False},
            },
        )
        self._ending.callback(stack.close)
        return stack

    def _url(self, name: str) -> str:
        sim, port = self.sims[name], self.proxies[name].port
        url = sim.openai_url if PROVIDERS[name] == "openai" else sim.anthropic_url
        return url.replace(f":{_port(sim.url)}", f":{port}")

    def _worker(self) -> Process:
        """Start one; again, as a supervisor does, where what it needs is away just then."""
        argv = [sys.executable, "-m", "llmtasks", "worker"]
        while not self._over.is_set():
            worker = self.stack.start([*argv, "--concurrency", str(self._concurrency)], "worker")
            eventually(
                lambda w=worker: _is_ready(w) or not w.running,
                lambda w=worker: f"it is ready or has ended: {w.output()}",
            )
            if worker.running:
                return worker
            self.never_ready.append(worker.output())
        raise RuntimeError("the installation is being ended")

    # --- the work ----------------------------------------------------------------------------------

    def add(self, count: int, first: int = 0) -> list[str]:
        """Store so many different documents, each with a mark that the providers' logs show; their ids."""
        new = [_document(f"d{number:06}") for number in range(first, first + count)]
        documents.add(self.database, new)
        return [one.document_id for one in new]

    def submit(self, task: str, ids: Sequence[str]) -> str:
        """Submit a batch; its id."""
        listing = self.stack.home / "ids"
        listing.write_text("\n".join(ids))
        return self.stack.submit(task, "--ids-from", str(listing))

    def produce(self, program: str, ids: Sequence[str], *, every_s: float) -> None:
        """Start a program that submits jobs one by one."""
        argv = [sys.executable, "-c", program, str(every_s), *ids]
        self._producer = self.stack.start(argv, "producer")

    def accepted(self) -> list[str]:
        """The documents whose jobs the program could submit; waits until it ends."""
        assert self._producer.wait() == 0, self._producer.output()
        return self._producer.output().split()

    def open_jobs(self) -> int:
        """Jobs that have not ended."""
        return sum(
            count
            for state, count in self._asked(
                sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
            ).items()
            if state in (JobState.QUEUED, JobState.RUNNING, JobState.WAITING)
        )

    def _asked(self, statement: sa.Select[Any]) -> dict[Any, Any]:
        while True:
            try:
                with self.database.read() as connection:
                    return {row[0]: row[1] for row in connection.execute(statement)}
            except Exception:  # noqa: BLE001  # a server in the middle of its crash says many things
                time.sleep(_AGAIN_S)

    def held_by(self, pid: int) -> frozenset[str]:
        """The documents whose jobs a worker process has in its hands, as far as the database knows; it had
        those, too, that it had when it was stopped or the database was broken a while ago: others may have
        taken them since, and its answers are unwritten.
        """
        since = time.monotonic() - _UNWRITTEN_S
        noted = (held for at, of, held in self._in_hand if of == pid and at > since)
        return self._held_now(pid).union(*noted)

    def _held_now(self, pid: int) -> frozenset[str]:
        rows = self._asked(
            sa.select(jobs.c.document_id, jobs.c.worker_id).where(
                jobs.c.state == JobState.RUNNING.value, jobs.c.worker_id.like(f"%-{pid}-%")
            )
        )
        return frozenset(rows)

    def _note_in_hand(self, worker: Process) -> frozenset[str]:
        held = self._held_now(worker.pid)
        self._in_hand.append((time.monotonic(), worker.pid, held))
        return held

    # --- breaking ----------------------------------------------------------------------------------

    def suffer(self, breaks: Sequence[Break]) -> None:
        """Let every break happen at its time; returns when the last one is over, and all is well again.

        A provider that is not called keeps its broken answers: each would cost one of the few tries that
        it is given then, minutes apart.
        """
        began = time.monotonic()
        for one in sorted(breaks):
            _sleep_until(began + one.at)
            self._breaking.append(self._hands.submit(self._break, one))
        for future in self._breaking:
            future.result()
        for sim in self.sims.values():
            sim.no_faults()

    def _leave_alone(self) -> None:
        """Break nothing and start nothing any more."""
        self._over.set()
        wait(self._breaking)

    def _break(self, one: Break) -> None:
        if one.target == "worker":
            self._break_worker(one)
        elif one.target == "redis":
            self._break_redis(one)
        elif one.target == "sql":
            self._break_sql(one)
        else:
            self._break_provider(one)

    def _break_worker(self, one: Break) -> None:
        # A worker that takes long to end or to come back is not struck meanwhile.
        with self._hands_on[one.which]:
            self._strike_worker(one, self.workers[one.which])

    def _strike_worker(self, one: Break, worker: Process) -> None:
        at = time.time()
        match one.kind:
            case "kill" | "kill, back soon":
                worker.kill()
                self._strike(str(one), at, documents=self.held_by(worker.pid))
                time.sleep(one.lasts)
                self.workers[one.which] = self._worker()
            case "terminate":
                worker.signal(signal.SIGTERM)
                # What is not answered within the drain is given up, and asked by somebody else.
                held = self.held_by(worker.pid)
                worker.wait()
                self._strike(str(one), at, documents=held)
                self.workers[one.which] = self._worker()
            case "stop":
                worker.signal(signal.SIGSTOP)
                held = self._note_in_hand(worker)
                time.sleep(one.lasts)
                worker.signal(signal.SIGCONT)
                self._strike(str(one), at, documents=held)

    def _break_redis(self, one: Break) -> None:
        server, proxy = self.redis, self.proxies["redis"]
        match one.kind:
            case "restart" | "restart empty":
                server.stop()
                time.sleep(one.lasts)
                server.start(empty=one.kind == "restart empty")
            case "flush":
                server.flush()
            case "pause":
                server.signal(signal.SIGSTOP)
                time.sleep(one.lasts)
                server.signal(signal.SIGCONT)
            case "full":
                server.send(_FULL)
                time.sleep(one.lasts)
                server.send(_NOT_FULL)
            case _:
                _break_link(proxy, one)

    def _break_sql(self, one: Break) -> None:
        proxy = self.proxies["sql"]
        for worker in self.workers:
            self._note_in_hand(worker)
        match one.kind:
            case "crash":
                self.cluster.crash()
                time.sleep(one.lasts)
                self.cluster.start()
            case "lose a commit's reply":
                proxy.lose_reply(lambda data: b"COMMIT" in data)
            case _:
                _break_link(proxy, one)

    def _break_provider(self, one: Break) -> None:
        sim, at = self.sims[one.target], time.time()
        match one.kind:
            case "cut" | "refuse" | "freeze":
                _break_link(self.proxies[one.target], one)
                self._strike(str(one), at, provider=one.target)
            case "429" | "529":
                sim.faults(kind=one.kind, next=_STRIKES, retry_after=one.lasts)
            case "500":
                sim.faults(kind="500", rate=0.3, for_s=one.lasts)
            case "slow":
                sim.faults(kind="slow", next=_STRIKES, seconds=TIMEOUT_S)
            case kind:
                sim.faults(kind=kind, next=_STRIKES)

    def _strike(
        self,
        what: str,
        at: float,
        *,
        provider: str | None = None,
        documents: frozenset[str] | None = None,
    ) -> None:
        self.struck.append(
            Struck(what=what, start=at, end=time.time(), provider=provider, documents=documents)
        )

    # --- the end -----------------------------------------------------------------------------------

    def finish(self, timeout: float = 600.0) -> None:
        """Wait until every job has ended. A provider that was broken each time it was tried stays away for up
        to 300 s.
        """
        eventually(lambda: not self.open_jobs(), self._standing, timeout)

    def _standing(self) -> str:
        """For a person: what is left, and why."""
        left = sa.select(jobs).where(jobs.c.finished_at.is_(None)).limit(5)
        with self.database.read() as connection:
            rows = [row._asdict() for row in connection.execute(left)]
        providers = self.stack.inside("providers", code=None).stdout
        return "\n".join(["all jobs have ended", *map(str, rows), providers])

    def story(self, documents: Iterable[str] = ()) -> str:
        """For a person: what was broken when, and all that workers said of these documents."""
        broken = [
            f"{one.start:.3f} to {one.end:.3f} {one.what}, {len(one.documents or ())} jobs in hand"
            for one in sorted(self.struck, key=lambda one: one.start)
        ]
        said = [
            f"{worker.stem}: {line}"
            for worker in self.stack.home.glob("worker-*.log")
            for line in worker.read_text(errors="replace").splitlines()
            if any(document in line for document in documents)
        ]
        return "\n".join([*broken, *said])

    def ended(self) -> list[str]:
        """What those workers said last that have ended although nobody ended them."""
        return [worker.output()[-4_000:] for worker in self.workers if not worker.running]

    def books(self) -> Books:
        """What became of everything, from the database and the providers' own logs."""
        logs = {name: sim.log() for name, sim in self.sims.items()}
        calls = [call for name, log in logs.items() for call in ledger.paid_calls(name, log)]
        with self.database.read() as connection:
            recorded = [
                (row.provider, row.request_id)
                for row in connection.execute(
                    sa.select(provider_calls.c.provider, provider_calls.c.request_id).where(
                        provider_calls.c.request_id.is_not(None),
                        provider_calls.c.input_tokens.is_not(None),
                    )
                )
            ]
            crashes, rows = (
                connection.execute(statement).scalar_one()
                for statement in (
                    sa.select(sa.func.coalesce(sa.func.sum(jobs.c.crashes), 0)),
                    sa.select(sa.func.count()).select_from(results),
                )
            )
        return Books(
            states=self._asked(sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)),
            errors=self._asked(
                sa.select(jobs.c.error_type, sa.func.count())
                .where(jobs.c.error_type.is_not(None))
                .group_by(jobs.c.error_type)
            ),
            results=rows,
            crashes=int(crashes),
            audit=ledger.audit(calls, recorded, self.struck, timeout_s=TIMEOUT_S),
            calls=sum(len(log) for log in logs.values()),
            refused=[
                f"{name}: {line}"
                for name, log in logs.items()
                for line in log
                if line["fault"] == "quota" and not self._held_back(name, line["at"])
            ],
        )

    def _held_back(self, name: str, at: float) -> bool:
        """Whether calls came late to it about then: over a link that was frozen, or of a stopped worker."""
        return any(
            one.start <= at <= one.end + _CAUGHT_UP_S
            for one in self.struck
            if one.provider in (None, name) and ("freeze" in one.what or "stop" in one.what)
        )


@contextlib.contextmanager
def installation(*, workers: int, concurrency: int, per_minute: float) -> Iterator[Installation]:
    """Everything started and ready; ended afterwards whatever happened."""
    with contextlib.ExitStack() as ending:
        home = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        yield Installation(
            ending, home, workers=workers, concurrency=concurrency, per_minute=per_minute
        )


#: A program that submits single jobs while everything breaks, and prints each id that was accepted.
PRODUCER = """
import sys, time
from llmtasks import process_document
from llmtasks.errors import LLMTasksError

for document_id in sys.argv[2:]:
    while True:
        try:
            process_document.apply_async((document_id, "summarize"), task_id="job-" + document_id)
        except LLMTasksError:
            time.sleep(0.2)
        else:
            print(document_id, flush=True)
            break
    time.sleep(float(sys.argv[1]))
"""


def _is_ready(worker: Process) -> bool:
    return "worker-ready" in worker.output()


def _break_link(proxy: Proxy, one: Break) -> None:
    match one.kind:
        case "cut":
            proxy.cut()
        case "refuse":
            proxy.refuse()
            proxy.cut()
            time.sleep(one.lasts)
            proxy.accept()
        case "freeze":
            proxy.freeze()
            time.sleep(one.lasts)
            proxy.thaw()
        case "abandon":
            proxy.abandon()
        case "lose a reply":
            proxy.lose_reply()
        case kind:
            raise ValueError(kind)


def _document(document_id: str) -> NewDocument:
    text = (
        f"[[sim:{document_id}]] Report {document_id} of the harbour office. "
        f"Ship {document_id} came in with seven barrels of salt and left before the evening."
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return NewDocument(document_id=document_id, text=text, content_hash=digest)


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
