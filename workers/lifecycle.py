"""What a worker process owns, from start to stop, tied to Celery's signals."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any

from celery import signals

from llmtasks import admission, logs, metrics, providers, task_types, tasks
from llmtasks.celery_app import app
from llmtasks.errors import ConfigurationError, LLMTasksError
from llmtasks.executor import Completed, Elsewhere, Executor, Parked, Watch
from llmtasks.gateway import Gateway
from llmtasks.jobs import NewJob
from llmtasks.local import EmbeddedServer
from llmtasks.loop import LoopThread
from llmtasks.settings import Settings, api_key, current
from llmtasks.store import workers as leases
from llmtasks.task_types.base import load_prompt
from workers.maintenance import Maintenance

_log = logs.get("worker")


class Runtime:
    """One worker process: its loop, clients, lease, metrics and periodic work."""

    def __init__(self, settings: Settings, concurrency: int, queues: list[str]) -> None:
        self.settings = settings
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._concurrency = concurrency
        self._queues = queues
        self._closing = contextlib.ExitStack()
        self._abort: threading.Timer | None = None

    def start(self) -> None:
        """Start everything, in the order it needs; on failure what has started is stopped.

        Raises:
            ConfigurationError: before anything runs, naming the key and what to do.
        """
        keys = check(self.settings)
        with contextlib.ExitStack() as starting:
            self._start(starting, keys)
            self._closing = starting.pop_all()

    def _start(self, closing: contextlib.ExitStack, keys: dict[str, str | None]) -> None:
        settings = self.settings
        if settings.embedded:
            server = EmbeddedServer(settings)
            server.start()
            closing.callback(server.stop)
        db = tasks.database()
        loop = LoopThread()
        loop.start()
        closing.callback(loop.stop)
        fleet, gateway = loop.run(self._connect(keys))
        closing.callback(lambda: loop.run(_close(fleet, gateway), timeout=5.0))
        self._loop, self._gateway = loop, gateway
        self.executor = Executor(
            db=db,
            gateway=gateway,
            loop=loop,
            settings=settings,
            worker_id=self.worker_id,
        )
        url = self._serve_metrics(closing)
        leases.register(
            db,
            self.worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            queues=self._queues,
            concurrency=self._concurrency,
            metrics_url=url,
            lease_s=settings.delivery.lease_s,
        )
        closing.callback(self._sign_off)
        self.maintenance = Maintenance(
            db=db,
            executor=self.executor,
            fleet=fleet,
            loop=loop,
            settings=settings,
            worker_id=self.worker_id,
            register=lambda: self._register(url),
            task_types=[
                name for name in task_types.names() if task_types.queue(name) in self._queues
            ],
        )
        self.maintenance.start()
        closing.callback(self.maintenance.stop)
        tasks.bind(_handler(self.executor))
        logs.info(
            _log,
            "worker-started",
            worker=self.worker_id,
            concurrency=self._concurrency,
            queues=",".join(self._queues),
            metrics=url or "off",
        )

    async def _connect(self, keys: dict[str, str | None]) -> tuple[admission.Admission, Gateway]:
        settings = self.settings
        fleet = admission.Admission(
            admission.connect(settings.redis_url),
            prefix=settings.redis.prefix,
            providers=settings.providers,
            cache=settings.cache,
        )
        gateway = Gateway(
            fleet,
            {p.name: providers.build(p, keys[p.name]) for p in settings.providers},
            policy=settings.retry,
            park_after_s=settings.dispatch.park_after_s,
            max_calls=settings.worker.max_calls,
        )
        return fleet, gateway

    def drain(self) -> None:
        """Stop taking work: waiting jobs go back now, calls in flight have `drain_s` to end."""
        logs.info(_log, "worker-draining", worker=self.worker_id, calls=self.executor.asking)
        self.maintenance.stop_feeding()
        self._loop.submit(_call(self._gateway.stop))
        self._abort = threading.Timer(self.settings.worker.drain_s, self.executor.abort)
        self._abort.daemon = True
        self._abort.start()

    def close(self) -> None:
        """Stop everything, in the reverse order. The slots have ended before."""
        if self._abort is not None:
            self._abort.cancel()
        self._closing.close()
        logs.info(_log, "worker-stopped", worker=self.worker_id)

    def _serve_metrics(self, closing: contextlib.ExitStack) -> str | None:
        configured = self.settings.metrics
        if not configured.enabled:
            return None
        try:
            exporter = metrics.serve(configured.host, configured.port)
        except OSError as error:
            raise ConfigurationError(
                f"metrics.port: no endpoint on {configured.host}:{configured.port}: {error.strerror}"
            ) from None
        closing.callback(exporter.close)
        return exporter.url

    def _register(self, url: str | None) -> None:
        leases.register(
            tasks.database(),
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
            leases.remove(tasks.database(), self.worker_id)


def check(settings: Settings) -> dict[str, str | None]:
    """What a worker needs beyond valid settings: providers, and their keys by provider name.

    Raises:
        ConfigurationError: naming what is missing and how to give it.
    """
    if not settings.providers:
        raise ConfigurationError(
            "providers: none is configured; add a [[providers]] section to llmtasks.toml"
            " (see the README), or try `make demo`"
        )
    keys = {provider.name: api_key(provider) for provider in settings.providers}
    for name in task_types.names():
        load_prompt(task_types.get(name), settings.prompts.dir)
    return keys


def connect() -> None:
    """Tie a runtime to this process' Celery worker."""
    holder: dict[str, Runtime] = {}

    def starting(sender: Any = None, **_: Any) -> None:
        logs.configure(current().log.level)
        _require_threads(sender)
        queues = sorted(app.amqp.queues.consume_from)
        runtime = Runtime(current(), int(sender.concurrency), queues)
        runtime.start()
        holder["runtime"] = runtime

    def ready(**_: Any) -> None:
        if "runtime" in holder:
            logs.info(_log, "worker-ready", worker=holder["runtime"].worker_id)

    def shutting_down(**_: Any) -> None:
        if "runtime" in holder:
            holder["runtime"].drain()

    def stopped(**_: Any) -> None:
        runtime = holder.pop("runtime", None)
        if runtime is not None:
            runtime.close()

    signals.celeryd_after_setup.connect(_or_exit(_validate), weak=False)
    signals.worker_init.connect(_or_exit(starting), weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    signals.worker_shutdown.connect(stopped, weak=False)


def _validate(**_: Any) -> None:
    check(current())


def _or_exit(handler: Callable[..., None]) -> Callable[..., None]:
    """A wrong setting ends the process with one line and exit code 2, before it takes any job."""

    def checked(*args: Any, **kwargs: Any) -> None:
        try:
            handler(*args, **kwargs)
        except LLMTasksError as error:
            print(f"llmtasks: {error}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(2) from None

    return checked


def _require_threads(worker: Any) -> None:
    pool = str(getattr(worker, "pool_cls", "threads"))
    if "thread" not in pool:
        raise ConfigurationError(
            "worker pool: jobs share one loop, one lease and one set of clients per process:"
            " use -P threads (the default here)"
        )


def _handler(executor: Executor) -> tasks.Handler:
    """The executor's outcomes in the words of the Celery task."""

    def handle(
        job: NewJob,
        *,
        waiting: Callable[[str, float], None],
        progress: Callable[[str], None],
    ) -> dict[str, Any]:
        outcome = executor.run(job, Watch(waiting=waiting, progress=progress))
        match outcome:
            case Completed(result):
                return result
            case Parked(delay, error):
                raise tasks.Parked(delay, error)
            case Elsewhere():
                raise tasks.Duplicate

    return handle


async def _call(function: Callable[[], None]) -> None:
    function()


async def _close(fleet: admission.Admission, gateway: Gateway) -> None:
    await gateway.aclose()
    await fleet.aclose()
