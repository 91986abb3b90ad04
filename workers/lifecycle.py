"""What a worker process owns, from start to stop, tied to Celery's signals."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from celery import bootsteps, signals
from celery.apps import worker as celery_worker

from llmtasks import admission, checks, documents, logs, metrics, providers, task_types, tasks
from llmtasks.celery_app import TOLD_QUEUE, app
from llmtasks.errors import ConfigurationError, LLMTasksError
from llmtasks.executor import Executor, Watch
from llmtasks.gateway import Gateway
from llmtasks.jobs import NewJob, Outcome, Parked
from llmtasks.local import EmbeddedServer
from llmtasks.loop import LoopThread
from llmtasks.progress import Publisher
from llmtasks.retry import describe
from llmtasks.settings import Settings, current
from llmtasks.store import jobs
from llmtasks.store import workers as leases
from llmtasks.store.process import database
from workers.census import Census
from workers.consumption import Consumption
from workers.deliveries import Deliveries
from workers.housekeeping import Housekeeping
from workers.maintenance import Maintenance

_log = logs.get("worker")

#: Seconds between two looks, during the drain, at whether somebody is in a hurry.
_HURRY_LOOK_S = 0.1

#: Seconds after the drain in which slots have to hand back their jobs.
GIVE_UP_S = 15.0


class Runtime:
    """One worker process: its loop, clients, lease, metrics and periodic work."""

    def __init__(self, settings: Settings, concurrency: int, queues: list[str]) -> None:
        self.settings = settings
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._concurrency = concurrency
        self._queues = queues
        self._closing = contextlib.ExitStack()
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()  # reentrant, unlike an Event
        self._closed = threading.Event()
        self._hurried = False
        self._consumption: Consumption | None = None
        self._drained_at: float | None = None

    def start(self) -> None:
        """Start everything, in the order it needs; on failure what has started is stopped.

        Raises:
            ConfigurationError: before anything runs, naming the key and what to do.
        """
        ready = checks.ready(self.settings)
        with contextlib.ExitStack() as starting:
            self._start(starting, ready)
            self._closing = starting.pop_all()

    def _start(self, closing: contextlib.ExitStack, ready: checks.Ready) -> None:
        settings = self.settings
        if settings.embedded:
            server = EmbeddedServer(settings)
            server.start()
            closing.callback(server.stop)
        db = database()
        loop = LoopThread()
        loop.start()
        closing.callback(loop.stop)
        fleet, gateway, streams = loop.run(self._connect(ready.keys))
        closing.callback(lambda: loop.run(_close(fleet, gateway), timeout=5.0))
        self._loop, self._fleet, self._gateway = loop, fleet, gateway
        closing.callback(lambda: loop.run(streams.aclose(), timeout=5.0))
        self.executor = Executor(
            db=db,
            gateway=gateway,
            loop=loop,
            settings=settings,
            worker_id=self.worker_id,
            source=ready.hooks.source,
            streams=streams,
            converters=closing.enter_context(documents.pool()),
        )
        url = self._serve_metrics(closing)
        self._register(url)
        closing.callback(self._sign_off)
        deliveries = None
        if ready.hooks.sink is not None:
            deliveries = Deliveries(
                db=db, sink=ready.hooks.sink, settings=settings, worker_id=self.worker_id
            )
        self.maintenance = Maintenance(
            db=db,
            executor=self.executor,
            fleet=fleet,
            loop=loop,
            settings=settings,
            worker_id=self.worker_id,
            register=lambda: self._register(url),
            task_types=self._task_types,
            deliveries=deliveries,
        )
        self.maintenance.start()
        closing.callback(self.maintenance.stop)
        housekeeping = Housekeeping(db, settings.retention)
        housekeeping.start()
        closing.callback(housekeeping.stop)
        if url is not None:
            census = Census(db)
            census.start()
            closing.callback(census.stop)
        if deliveries is not None:
            deliveries.start()
            closing.callback(lambda: deliveries.stop(self._drain_left()))
        threading.Thread(target=self._drain_when_wanted, name="llmtasks-drain", daemon=True).start()
        tasks.bind(_handler(self.executor, self._parked))
        logs.info(
            _log,
            "worker-started",
            worker=self.worker_id,
            concurrency=self._concurrency,
            queues=",".join(self._queues),
            metrics=url or "off",
        )

    async def _connect(
        self, keys: Mapping[str, str | None]
    ) -> tuple[admission.Decider, Gateway, Publisher]:
        settings = self.settings
        fleet = admission.decider_of(settings)
        gateway = Gateway(
            fleet,
            {p.name: providers.build(p, keys[p.name]) for p in settings.providers},
            policy=settings.retry,
            park_after_s=settings.dispatch.park_after_s,
            max_calls=settings.worker.max_calls,
        )
        return fleet, gateway, Publisher.made(settings)

    @property
    def _task_types(self) -> list[str]:
        """Those that this worker serves."""
        return [name for name in task_types.names() if task_types.queue(name) in self._queues]

    def consume(self, rest: Callable[[frozenset[str]], None]) -> None:
        """From now on say which queues are to `rest`."""
        self._consumption = Consumption(
            fleet=self._fleet,
            loop=self._loop,
            settings=self.settings,
            task_types=self._task_types,
            rest=rest,
        )
        self._consumption.start()

    def _parked(self) -> None:
        if self._consumption is not None:
            self._consumption.look_soon()

    def drain(self) -> None:
        """Begin to stop: waiting jobs go back now, calls in flight have `drain_s` to end.

        May be called again, and from a signal handler: all it does is wake the thread that drains.
        """
        self._wanted.put(None)

    def hurry(self) -> None:
        """Begin to stop, and give up the calls in flight. From a signal handler, too."""
        self._hurried = True
        self.drain()

    def _drain_when_wanted(self) -> None:
        self._wanted.get()
        if self._closed.is_set():
            return
        self._drained_at = time.monotonic() + self.settings.worker.drain_s
        logs.info(_log, "worker-draining", worker=self.worker_id, calls=self.executor.asking)
        self.maintenance.stop_feeding()
        if self._consumption is not None:
            self._consumption.stop()
        self._loop.submit(_call(self._gateway.stop))
        while not self._hurried and time.monotonic() < self._drained_at:
            if self._closed.wait(_HURRY_LOOK_S):
                return
        self.executor.abort()
        if self._closed.wait(GIVE_UP_S):
            return
        # Redis or SQL hangs, and a slot or Celery with it: the lease runs out, and others take over.
        logs.error(_log, "drain-gave-up", worker=self.worker_id)
        os._exit(1)

    def _drain_left(self) -> float:
        """Seconds that are left of the drain."""
        if self._drained_at is None:
            return self.settings.worker.drain_s
        return max(0.0, self._drained_at - time.monotonic())

    def close(self) -> None:
        """Stop everything, in the reverse order. The slots have ended before."""
        self._closed.set()
        self._wanted.put(None)
        if self._consumption is not None:
            self._consumption.stop(timeout=GIVE_UP_S)
        self._closing.close()
        logs.info(_log, "worker-stopped", worker=self.worker_id)

    def _serve_metrics(self, closing: contextlib.ExitStack) -> str | None:
        configured = self.settings.metrics
        if not configured.enabled:
            return None
        login = (configured.user, configured.password) if configured.password else None
        try:
            exporter = metrics.serve(configured.host, configured.port, login)
        except OSError as error:
            raise ConfigurationError(
                f"metrics.port: no endpoint on {configured.host}:{configured.port}: {error.strerror}"
            ) from None
        closing.callback(exporter.close)
        return exporter.url

    def _register(self, url: str | None) -> None:
        leases.register(
            database(),
            self.worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            queues=self._queues,
            concurrency=self._concurrency,
            metrics_url=url,
            lease_s=self.settings.delivery.lease_s,
        )

    def _sign_off(self) -> None:
        with contextlib.suppress(LLMTasksError):  # no database: the lease runs out by itself
            leases.remove(database(), self.worker_id)


def connect() -> None:
    """Tie a runtime to this process' Celery worker."""
    holder: dict[str, Runtime] = {}

    def starting(sender: Any = None, **_: Any) -> None:
        _write_logs()
        _require_threads(sender)
        _share_results(int(sender.concurrency))
        queues = app.amqp.queues
        served = sorted(queues.consume_from.keys() - {TOLD_QUEUE})
        queues.select_add(queues[TOLD_QUEUE])  # whatever its `--queues` say
        runtime = Runtime(current(), int(sender.concurrency), served)
        runtime.start()
        holder["runtime"] = runtime

    def ready(sender: Any = None, **_: Any) -> None:
        if "runtime" in holder:
            _hurry_on_quit(holder["runtime"])
            holder["runtime"].consume(sender.rest)
            logs.info(_log, "worker-ready", worker=holder["runtime"].worker_id)

    def stopped(**_: Any) -> None:
        runtime = holder.pop("runtime", None)
        if runtime is not None:
            runtime.close()

    def stopping(**_: Any) -> None:
        if "runtime" in holder:
            holder["runtime"].drain()

    class Drain(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
        """Drains before the pool waits for its slots, whoever asked the worker to stop: a signal, or
        Flower.
        """

        requires = ("celery.worker.components:Pool",)

        def stop(self, _worker: Any) -> None:
            stopping()

    app.steps["worker"].add(Drain)
    signals.setup_logging.connect(_write_logs, weak=False)
    signals.worker_init.connect(_or_exit(starting), weak=False)
    signals.worker_ready.connect(ready, weak=False)
    # The signal's own handler, because a worker whose broker hangs gets no further.
    signals.worker_shutting_down.connect(stopping, weak=False)
    signals.worker_shutdown.connect(stopped, weak=False)
    signals.task_revoked.connect(_revoked, weak=False)


def _write_logs(loglevel: int = logging.WARNING, logfile: str | None = None, **_: Any) -> None:
    """In one form for all, and not by Celery's own: tracebacks of its lines may quote anything."""
    log = current().log
    # Celery has a line for each job where ours say it better.
    celery = min(loglevel, logging.INFO) if log.level == "debug" else loglevel
    logs.configure(log.level, log.format, celery=celery)
    if log.format == "json":
        # It prints a sentence and an empty line when it is told to stop, among what a machine reads.
        celery_worker.safe_say = lambda *_: None
    if logfile:
        logs.into_file(logfile, log.format)


def _share_results(slots: int) -> None:
    """One client of results for all slots, each of which may be writing one. Celery makes each thread its
    own, with connections of its own.
    """
    app.conf.result_backend_thread_safe = True
    app.conf.redis_max_connections = slots + 16  # redis-py has 100, and refuses the next one


def _hurry_on_quit(runtime: Runtime) -> None:
    """SIGQUIT gives up the calls in flight, in order.

    Celery's own way drops them: nobody is told, and their places at the providers stay taken.
    """

    def hurrying(_number: int, _frame: object) -> None:
        runtime.hurry()
        os.kill(os.getpid(), signal.SIGTERM)  # Celery begins to stop, if it has not already

    signal.signal(signal.SIGQUIT, hurrying)


def _revoked(request: Any = None, **_: Any) -> None:
    """A job revoked through Celery (Flower's button, `AsyncResult.revoke`) is a cancelled job."""
    try:
        jobs.cancel(database(), request.id)
    except LLMTasksError as error:
        logs.warning(_log, "revoke-failed", job=request.id, why=describe(error))


def _or_exit(handler: Callable[..., None]) -> Callable[..., None]:
    """What keeps a worker from working ends it with one line before it takes any job.

    Exit code 2 for a wrong setting, 1 for a part that does not answer.
    """

    def checked(*args: Any, **kwargs: Any) -> None:
        try:
            handler(*args, **kwargs)
        except LLMTasksError as error:
            wrong = isinstance(error, ConfigurationError)
            line = str(error) if wrong else describe(error)
            print(f"llmtasks: {line}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(2 if wrong else 1) from None
        except Exception as error:  # noqa: BLE001  # Celery would log it and go on without us
            print(  # noqa: T201
                f"llmtasks: {type(error).__name__}: {error} ({logs.place(error)})",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(1) from None

    return checked


def _require_threads(worker: Any) -> None:
    pool = str(getattr(worker, "pool_cls", "threads"))
    if "thread" not in pool:
        raise ConfigurationError(
            "worker pool: jobs share one loop, one lease and one set of clients per process:"
            " use -P threads (the default here)"
        )


def _handler(executor: Executor, parked: Callable[[], None]) -> tasks.Handler:
    """The executor in the form of the Celery task's seam; `parked` is told of each job that was."""

    def handle(
        job: NewJob,
        *,
        waiting: Callable[[str, float], None],
        progress: Callable[[str], None],
        sent_at: float | None,
    ) -> Outcome:
        watch = Watch(waiting=waiting, progress=progress)
        outcome = executor.run(job, watch, sent_at=sent_at)
        if isinstance(outcome, Parked):
            parked()
        return outcome

    return handle


async def _call(function: Callable[[], None]) -> None:
    function()


async def _close(fleet: admission.Decider, gateway: Gateway) -> None:
    await gateway.aclose()
    await fleet.aclose()
