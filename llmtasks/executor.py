"""One job: claim its row -> load the document -> run the task type -> save the result -> report.

Runs on a slot's thread (SQL stays there) and hands model calls to the loop. A message is only a doorbell:
the row decides whether there is anything to do, and only the holder of its fence can commit.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmtasks import incoming, logs, metrics, task_types
from llmtasks.documents import Pool, read_one
from llmtasks.errors import (
    DeadlineExceeded,
    DocumentNotFound,
    DocumentSourceFailed,
    InvalidDocument,
    InvalidOption,
    JobError,
    LLMTasksError,
    NotNow,
    OutputTooLarge,
    StoreUnavailable,
    by_name,
)
from llmtasks.gateway import GIVEN_UP, Answer, Call, Gateway, Journal, Question
from llmtasks.hooks import Source
from llmtasks.jobs import (
    ENDED,
    Completed,
    Elsewhere,
    Job,
    JobState,
    NewJob,
    Outcome,
    Parked,
    Refused,
    json_size,
)
from llmtasks.loop import LoopThread, Running
from llmtasks.messages import Completion, FinishReason, Request, Usage
from llmtasks.planning import Plan, plan
from llmtasks.progress import JobStream, Publisher
from llmtasks.providers.prices import cost_usd
from llmtasks.retry import Retry, decide, describe
from llmtasks.settings import Provider, Settings
from llmtasks.store import calls, deadlines, documents, jobs, results
from llmtasks.store.calls import NewCall
from llmtasks.store.engine import Database
from llmtasks.store.jobs import ClaimedJob
from llmtasks.store.results import NewResult
from llmtasks.store.retention import may_be_removed
from llmtasks.text.keys import request_key

T = TypeVar("T")

_log = logs.get("executor")

#: Seconds between two tries of a statement that the database did not answer.
STORE_RETRY_S = 1.0

#: Seconds that a job waits which may be what kills workers, while another such one runs in this process.
SUSPECT_S = 2.0

#: Requests whose ids a job's line has; how many there were it says in any case.
_MOST_REQUESTS = 10

#: Ends of a run after which its job runs again, here or elsewhere.
_COMES_BACK = frozenset({"waiting", "released", "superseded"})

#: Seconds without events after one that could not be sent.
SILENT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How a running job tells the outside world; both are called on the slot's thread."""

    waiting: Callable[[str, float], None] = field(default=lambda _reason, _delay: None)
    progress: Callable[[str], None] = field(default=lambda _text: None)


class Executor:
    """Runs jobs of one worker process.

    Args:
        db: The truth.
        gateway: Asks models; lives on `loop`.
        loop: The process' one asyncio loop.
        settings: The whole configuration.
        worker_id: The lease that the claimed rows carry.
        source: Gives the texts that are not in the database; None: those are not found.
        streams: Shows the answers of jobs that want it while they are written.
        converters: Read what the source gives and is no text. Closed with `abort`, else by who made them.
    """

    def __init__(
        self,
        *,
        db: Database,
        gateway: Gateway,
        loop: LoopThread,
        settings: Settings,
        worker_id: str,
        converters: Pool,
        source: Source | None = None,
        streams: Publisher | None = None,
    ) -> None:
        self.db = db
        self.gateway = gateway
        self.loop = loop
        self.settings = settings
        self.worker_id = worker_id
        self.source = source
        self.converters = converters
        self.streams = streams
        self.to_sink = settings.results.sink is not None
        self._asking: dict[tuple[str, int], Running[Answer]] = {}
        self._given_up: set[str] = set()
        self._active: dict[str, int] = {}
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._suspect = threading.Lock()
        self._suspect_from = max(1, settings.delivery.max_crashes - 1)
        self.silent_until = 0.0

    def run(self, new: NewJob, watch: Watch, *, sent_at: float | None = None) -> Outcome:
        """Run the job that a message announces, if it is still to be run.

        `sent_at` is when a row rang for it, in seconds since the epoch; None where there may be no row.

        Raises:
            LLMTasksError: The typed error the job failed with, now or earlier.
        """
        with self._at_work(new.job_id), contextlib.ExitStack() as ending:
            job = self.persist(lambda: self._claim(new, sent_at, ending))
            if not isinstance(job, ClaimedJob):
                return job
            return _Run(self, job, watch).outcome()

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Give up the model calls of jobs that were cancelled while they ran."""
        with self._lock:
            wanted = self._active.keys() & set(job_ids)
            self._given_up.update(wanted)
            asking = [one for (job_id, _), one in self._asking.items() if job_id in wanted]
        for running in asking:
            running.cancel()

    def abort(self) -> None:
        """Give up everything in flight; the jobs go back to the queue. The end of a drain."""
        self._aborted.set()
        with self._lock:
            asking = list(self._asking.values())
        for running in asking:
            running.cancel()
        self.converters.close()

    @property
    def asking(self) -> int:
        """Questions in flight or waiting in this process."""
        return len(self._asking)

    @property
    def active(self) -> frozenset[str]:
        """The jobs of which this process has a message at hand."""
        with self._lock:
            return frozenset(self._active)

    @contextlib.contextmanager
    def _at_work(self, job_id: str) -> Iterator[None]:
        """Count a message; two of the same job may be at hand."""
        with self._lock:
            self._active[job_id] = self._active.get(job_id, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._active[job_id] -= 1
                if not self._active[job_id]:
                    del self._active[job_id]
                    self._given_up.discard(job_id)

    def ask(self, job: ClaimedJob, question: Question, journal: Journal) -> Running[Answer]:
        """Hand a question to the loop, so that it can be given up by job."""
        with self._lock:
            if self._aborted.is_set() or job.job_id in self._given_up:
                raise concurrent.futures.CancelledError
            running = self.loop.start_task(self.gateway.ask(question, journal))
            self._asking[job.job_id, job.fence] = running
        return running

    def asked(self, job: ClaimedJob) -> None:
        """The question of this job has ended."""
        with self._lock:
            self._asking.pop((job.job_id, job.fence), None)

    def persist(self, action: Callable[[], T]) -> T:
        """Do it, however long the database is away: what was paid is not thrown away for an outage.

        The slot stays taken meanwhile, which is the back pressure an outage needs.
        """
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                logs.warning(_log, "store-away", why=error)
                if self._aborted.wait(STORE_RETRY_S):
                    raise

    def _claim(
        self, new: NewJob, sent_at: float | None, ending: contextlib.ExitStack
    ) -> ClaimedJob | Outcome:
        claimed = jobs.claim(self.db, new.job_id, self.worker_id, crashes_below=self._suspect_from)
        if claimed is not None:
            return claimed
        row = jobs.get(self.db, new.job_id)
        if row is None and self._is_past(sent_at):
            logs.info(_log, "job-past", job=new.job_id)
            return Elsewhere()
        if row is None:  # sent by name from a program that does not record
            return self._recorded(new)
        if row.crashes >= self._suspect_from and row.state in (JobState.QUEUED, JobState.WAITING):
            return self._claim_alone(row, ending)
        return self.told(self._ended_if_overdue(row))

    def _ended_if_overdue(self, row: Job) -> Job:
        """A row that could not be claimed, ended if its deadline was why."""
        timed = row.deadline_at is not None and row.state not in ENDED
        if not timed or not deadlines.end_if_overdue(
            self.db, row.job_id, self.worker_id, to_sink=self.to_sink
        ):
            return row
        return jobs.get(self.db, row.job_id) or row

    def _recorded(self, new: NewJob) -> ClaimedJob | Outcome:
        """Give a job its row, and claim it; one that can only fail gets one that has."""
        if not isinstance(new, Refused):
            jobs.insert_received(self.db, new)
            return jobs.claim(self.db, new.job_id, self.worker_id) or Elsewhere()
        name = InvalidOption.__name__
        jobs.insert_failed(self.db, new, self.worker_id, name, new.fault, to_sink=self.to_sink)
        logs.warning(_log, "job-refused", job=new.job_id, why=new.fault)
        row = jobs.get(self.db, new.job_id)
        return Elsewhere() if row is None else self.told(row)

    def _is_past(self, sent_at: float | None) -> bool:
        """Whether a job whose row rang then has ended, and was removed: it must not run once more."""
        if sent_at is None:
            return False
        return may_be_removed(sent_at, time.time(), self.settings.retention.jobs_days)

    def _claim_alone(self, row: Job, ending: contextlib.ExitStack) -> ClaimedJob | Outcome:
        """Claim a job that fails with the next worker it loses, unless another such one runs here.

        What kills its process takes all that run beside it along, each time the same ones if they are sent
        together: they would fail for it. So of those on their last chance a process runs one at a time.
        """
        if not self._suspect.acquire(blocking=False):
            jobs.postpone(self.db, row.job_id, SUSPECT_S, "its workers died: it runs apart")
            return Elsewhere()
        ending.callback(self._suspect.release)
        claimed = jobs.claim(self.db, row.job_id, self.worker_id)
        return claimed or self.told(self._ended_if_overdue(row))

    def told(self, row: Job) -> Outcome:
        """What a row that is not ours says: its result, its typed error, or nothing yet."""
        match row.state:
            case JobState.COMPLETED:
                stored = results.get(self.db, row.job_id)
                assert stored is not None, "a completed row has its result: same transaction"
                return Completed(described(row, stored))
            case JobState.FAILED | JobState.CANCELLED:
                raise by_name(row.error_type or "")(row.error_message or "")
            case _:
                return Elsewhere()


class _Run:
    """One claimed row on its way to an end."""

    def __init__(self, executor: Executor, job: ClaimedJob, watch: Watch) -> None:
        self.executor = executor
        self.db = executor.db
        self.settings = executor.settings
        self.job = job
        self.watch = watch
        self.started = time.monotonic()
        self.due = None if job.left_s is None else self.started + job.left_s
        self.waits_for = ""
        self.errands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.journal = Journal(
            attempts=max(1, job.attempts),
            on_thread=self._on_thread,
            on_wait=self._on_wait,
            job=job.job_id,
        )
        self.stream = self._stream()
        self.last: Completion | None = None
        self.recorded: list[NewCall] = []
        self.paid_before: Mapping[str, calls.PaidAnswer] = {}

    def _stream(self) -> JobStream | None:
        """Where the answer is shown while it is written, if somebody wants to see it."""
        streams, job = self.executor.streams, self.job
        if streams is None or not job.stream:
            return None
        return streams.of(job.job_id, job.fence, self.executor.loop.soon)

    def outcome(self) -> Outcome:
        """Work, then move the row to where it belongs."""
        try:
            result = self._work()
            held = self.executor.persist(
                lambda: jobs.complete(self.db, self.job, result, to_sink=self.executor.to_sink)
            )
        except NotNow as wait:
            return self._park(wait)
        except concurrent.futures.CancelledError:
            return self._give_back()
        except StoreUnavailable:
            raise  # stopping without a database: the lease runs out and another worker takes over
        except LLMTasksError as error:
            return self._fail(error)
        except BaseException as error:  # noqa: BLE001  # neither the row nor the slot may stay taken for it
            # A defect, ours or of a user's task type. Its message may quote the document.
            return self._fail(JobError(f"unexpected {type(error).__name__} at {logs.place(error)}"))
        if not held:
            return self._lost()
        self._ended("completed", logging.INFO, cached=result.cached)
        return Completed(described(self.job, result))

    def _work(self) -> NewResult:
        asked = plan(self.settings, self.job.task_type, self.job.options)
        document = self._document()
        key = asked.answer_key(self.job.tenant, document.content_hash)
        if (stored := self._stored(key)) is not None:
            return stored
        if self.job.resumed:
            self.paid_before = self.executor.persist(
                lambda: calls.answers(self.db, self.job.job_id)
            )
        output = asked.kind.run(
            task_types.Document(document.document_id, document.text),
            asked.options,
            _Context(self, asked),
        )
        self._check_size(output)
        usage, cost = self._spent()
        last = self.last
        return NewResult(
            answer_key=key,
            output=output,
            provider=last.provider if last else None,
            model=last.model if last else None,
            prompt_hash=asked.prompt.sha256,
            usage=usage,
            cost_usd=cost,
            cached=not self.journal.calls and not self.paid_before,
            seconds=last.latency_s if last and self.journal.calls else 0.0,
        )

    def _check_size(self, output: object) -> None:
        """Refuse an output that is too large to be stored; the answers it was made of are, for a retry."""
        size, most = json_size(output), self.settings.results.max_output_bytes
        if size > most:
            raise OutputTooLarge(
                f"the output has {size:,} bytes as JSON; results.max_output_bytes allows {most:,}"
            )

    def _document(self) -> documents.Document:
        """The stored text; where there is none, that of the user's own store."""
        job, source = self.job, self.executor.source
        try:
            return self.executor.persist(
                lambda: documents.load(self.db, job.tenant, job.document_id, job.document_hash)
            )
        except DocumentNotFound:
            if source is None or job.document_hash is not None:
                raise
        try:
            return self._fetched(source)
        except DocumentSourceFailed as error:
            at = logs.place(error.__cause__ or error)
            logs.warning(_log, "source-failed", job=job.job_id, why=error, at=at)
            policy = self.settings.retry
            decision = decide(error, self.journal.attempts, policy, random.random())
            if not isinstance(decision, Retry):
                raise
            metrics.retries.labels(type(error).__name__).inc()
            self.journal.attempts += 1
            raise NotNow(describe(error), delay=decision.delay) from error

    def _fetched(self, source: Source) -> documents.Document:
        """What the user's function gives, read like a document that is added. It stays where it is."""
        job = self.job
        found = source(job.document_id, job.tenant)
        try:
            read = read_one(found, self.settings.documents.max_bytes, self.executor.converters)
        except InvalidDocument as error:
            raise InvalidDocument(f"document {job.document_id!r}: {error}") from None
        return incoming.document(read, document_id=job.document_id, tenant=job.tenant)

    def _stored(self, key: str | None) -> NewResult | None:
        """The answer that another job was given to the same question, unless a fresh one is wanted."""
        if key is None or self.job.fresh:
            return None
        stored = self.executor.persist(lambda: results.find(self.db, self.job.tenant, key))
        if stored is None:
            return None
        metrics.cache_hits.labels("hit").inc()
        return _reused(stored)

    def record(self, new: Sequence[Call], providers: Sequence[Provider]) -> None:
        """Commit what was paid, on arrival."""
        if not new:
            return
        by_provider = {provider.name: provider for provider in providers}
        rows = [_row(call, by_provider[call.provider]) for call in new]
        self.recorded += rows
        for row in rows:
            counted = row.usage is not None
            metrics.count_cost(row.provider, row.model, row.cost_usd, is_counted=counted)
        self.executor.persist(lambda: calls.record(self.db, self.job, rows))

    @property
    def overdue(self) -> bool:
        """Whether the job's deadline has passed."""
        return self.due is not None and time.monotonic() >= self.due

    def exceeded(self, doing: str) -> DeadlineExceeded:
        """What the job fails with, once it is overdue."""
        return DeadlineExceeded.after(self.job.deadline_s or 0.0, doing)

    def wait(self, running: Running[Answer]) -> Answer:
        """Wait for an answer, doing meanwhile what the loop wants done on this thread.

        At the deadline the question is given up; an answer that has arrived by then is still one.
        """
        running.future.add_done_callback(lambda _future: self.errands.put(None))
        due = self.due
        while True:
            try:
                left = None if due is None else max(0.0, due - time.monotonic())
                errand = self.errands.get(timeout=left)
            except queue.Empty:
                running.cancel()
                due = None
                continue
            if errand is None:
                return running.future.result()
            errand()

    def tell(self, watcher: Callable[..., None], *news: object) -> None:
        """Tell a watcher. Without a broker nobody can be told, and the job goes on.

        An event that cannot be sent takes seconds to fail: the next ones are not even tried for a while.
        """
        if time.monotonic() < self.executor.silent_until:
            return
        try:
            watcher(*news)
        except Exception as error:  # noqa: BLE001  # whatever a transport raises
            self.executor.silent_until = time.monotonic() + SILENT_S
            logs.warning(_log, "untold", job=self.job.job_id, why=type(error).__name__)

    def _on_wait(self, reason: str, delay: float) -> None:
        self.waits_for = reason
        self.errands.put(functools.partial(self.tell, self.watch.waiting, reason, delay))

    def _on_thread(self, function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # noqa: BLE001  # handed over as it is
                    future.set_exception(error)

        self.errands.put(run)
        return future

    def _spent(self) -> tuple[Usage, float | None]:
        """Tokens and dollars of this job, over all its claims; one unknown price makes all unknown."""
        if self.job.resumed:
            return self.executor.persist(lambda: calls.spent(self.db, self.job.job_id))
        usage = sum((row.usage or Usage() for row in self.recorded), Usage())
        costs = [row.cost_usd for row in self.recorded if row.cost_usd is not None]
        return usage, sum(costs) if len(costs) == len(self.recorded) else None

    def _park(self, wait: NotNow) -> Outcome:
        # The next claim counts this attempt again: a wait spends none.
        attempts = self.journal.attempts - 1
        held = self.executor.persist(
            lambda: jobs.park(
                self.db,
                self.job,
                wait.delay,
                str(wait),
                attempts=attempts,
                deferred=attempts < self.job.attempts,
            )
        )
        if not held:
            return self._lost()
        self._ended("waiting", logging.INFO, delay=wait.delay, reason=wait)
        cause = wait.__cause__
        return Parked(wait.delay, cause if isinstance(cause, LLMTasksError) else wait)

    def _give_back(self) -> Outcome:
        attempts = self.journal.attempts - 1
        if not self.executor.persist(lambda: jobs.release(self.db, self.job, attempts=attempts)):
            return self._lost()
        self._ended("released", logging.INFO)
        return Parked(0.0, NotNow("the worker is stopping"))

    def _fail(self, error: LLMTasksError) -> Outcome:
        """End the row with this error and raise it, if the row is still ours to end."""
        name, message = type(error).__name__, str(error)
        held = self.executor.persist(
            lambda: jobs.fail(self.db, self.job, name, message, to_sink=self.executor.to_sink)
        )
        if not held:
            return self._lost()
        self._ended("failed", logging.WARNING, error=name, why=message)
        raise error from None

    def _lost(self) -> Outcome:
        """The fence moved on: cancelled, or taken over after a stall. Nothing was written."""
        row = self.executor.persist(lambda: jobs.get(self.db, self.job.job_id))
        if row is not None and row.state is JobState.CANCELLED:
            self._ended("cancelled", logging.INFO)
        else:
            self._ended("superseded", logging.WARNING)
        return Elsewhere() if row is None else self.executor.told(row)

    def _ended(self, state: str, level: int, **fields: object) -> None:
        if self.stream is not None and state not in _COMES_BACK:
            self.stream.end()
        metrics.jobs.labels(self.job.task_type, state).inc()
        logs.event(
            _log,
            level,
            f"job-{state}",
            job=self.job.job_id,
            batch=self.job.batch_id,
            document=self.job.document_id,
            task=self.job.task_type,
            state=state,
            attempts=self.journal.attempts,
            **self._called(),
            queued_s=self.job.queued_s,
            running_s=time.monotonic() - self.started,
            **fields,
        )

    def _called(self) -> dict[str, object]:
        """What this run called and paid, for its line. The lines of a job that was parked add up."""
        last, paid = self.last, self.recorded
        costs = [row.cost_usd for row in paid if row.cost_usd is not None]
        usage = sum((row.usage or Usage() for row in paid), Usage())
        requests = [row.request_id for row in paid if row.request_id]
        return {
            "calls": len(self.journal.calls),
            "provider": last.provider if last else (paid[-1].provider if paid else None),
            "model": last.model if last else (paid[-1].model if paid else None),
            "requests": requests[:_MOST_REQUESTS] or None,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": sum(costs) if len(costs) == len(paid) else None,
        }


class _Context:
    """What a task type sees of the world."""

    def __init__(self, run: _Run, asked: Plan) -> None:
        self._run = run
        self._asked = asked

    @property
    def prompt(self) -> task_types.Prompt:
        """The prompt of the task type."""
        return self._asked.prompt

    @property
    def temperature(self) -> float:
        """The sampling temperature of the settings."""
        return self._asked.temperature

    @property
    def max_output_tokens(self) -> int | None:
        """The answer limit of the settings in tokens; None: the task type's own estimate."""
        return self._asked.max_output_tokens

    def ask(self, request: Request, accept: Callable[[str], T]) -> T:
        """Ask a model, wait, and accept its answer; see `task_types.TaskContext`."""
        run = self._run
        key = request_key(run.job.tenant, self._asked.models, request)
        if run.stream is not None:
            run.stream.begin()
        if (paid := run.paid_before.get(key)) is not None:
            run.last = _completion(paid)
            if run.stream is not None:
                run.stream.given(paid.answer)
            return accept(paid.answer)
        if run.overdue:
            raise run.exceeded("it had more to ask")
        question = Question(
            request=request,
            key=key,
            listener=run.stream,
            shared=run.settings.is_shared(self.temperature),
            fresh=run.job.fresh,
            tenant=run.job.tenant,
            priority=run.job.priority,
            task=run.job.task_type,
            providers=tuple(provider.name for provider in self._asked.providers),
            input_tokens=max(self._asked.input_tokens(request).values()),
            exact=self._asked.exact,
            accept=accept,
        )
        recorded = len(run.journal.calls)
        run.waits_for = ""
        try:
            answer = run.wait(run.executor.ask(run.job, question, run.journal))
        except concurrent.futures.CancelledError:
            if not run.overdue:
                raise
            raise run.exceeded(_doing(run.journal.calls[recorded:], run.waits_for)) from None
        finally:
            run.executor.asked(run.job)
            run.record(run.journal.calls[recorded:], self._asked.providers)
        run.last = answer.completion
        output: T = answer.output
        return output

    def report(self, text: str) -> None:
        """Show progress (`3/10 chunks`) to whoever watches the job."""
        self._run.tell(self._run.watch.progress, text)


def _doing(asked: Sequence[Call], waits_for: str) -> str:
    """Where a question stood that was given up."""
    for call in asked:
        if call.outcome == GIVEN_UP:
            return f"{call.provider} had not answered"
    return f"it was waiting: {waits_for or 'for its turn'}"


def described(job: NewJob, result: NewResult) -> dict[str, Any]:
    """What `.get()` returns. The output itself stays in SQL."""
    return {
        "status": "completed",
        "document_id": job.document_id,
        "task_type": job.task_type,
        "job_id": job.job_id,
        "cached": result.cached,
        "provider": result.provider,
        "model": result.model,
        "usage": {
            "input_tokens": result.usage.input_tokens,
            "output_tokens": result.usage.output_tokens,
        },
        "cost_usd": result.cost_usd,
    }


def _reused(stored: NewResult) -> NewResult:
    """A stored answer as a new job's result: it cost this job nothing."""
    return NewResult(
        answer_key=stored.answer_key,
        output=stored.output,
        provider=stored.provider,
        model=stored.model,
        prompt_hash=stored.prompt_hash,
        usage=Usage(),
        cost_usd=0.0,
        cached=True,
        seconds=0.0,
    )


def _row(call: Call, provider: Provider) -> NewCall:
    cost = (
        None
        if call.usage is None
        else cost_usd(provider.kind, provider.base_url, call.model, call.usage)
    )
    return NewCall(
        call_id=call.call_id,
        answer_key=call.key,
        provider=call.provider,
        model=call.model,
        usage=call.usage,
        cost_usd=cost,
        latency_s=call.latency_s,
        outcome=call.outcome,
        request_id=call.request_id,
        answer=call.answer,
    )


def _completion(paid: calls.PaidAnswer) -> Completion:
    return Completion(
        text=paid.answer,
        finish_reason=FinishReason.STOP,
        provider=paid.provider,
        model=paid.model,
        usage=paid.usage,
        latency_s=paid.latency_s,
        request_id=paid.request_id,
    )
