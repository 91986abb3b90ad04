"""`llmtasks up`: all of it on this machine, in the foreground."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmtasks import __version__, directories, processes
from llmtasks.addresses import public
from llmtasks.cli.asked import Asked
from llmtasks.cli.diagnosis import configuration
from llmtasks.cli.output import limits
from llmtasks.cli.servers import require_servers
from llmtasks.cli.supervise import Member, wait_for
from llmtasks.errors import ConfigurationError, JobError, UsageError
from llmtasks.settings import ASSUMED, Settings, current, current_origin

if TYPE_CHECKING:
    from llmtasks.store.engine import Database

#: Seconds between two looks at the children.
LOOK_S = 0.2

#: Seconds after which a start that takes long is spoken of.
SLOW_S = 30.0

#: Ports that are tried for Flower, from the configured one upwards.
PORTS = 20

#: Seconds from SIGTERM to SIGKILL: a worker's beyond its drain, and Flower's.
WORKER_GRACE_S = 20.0
FLOWER_GRACE_S = 3.0

#: What to type when everything runs.
NEXT = ("llmtasks documents add FOLDER", "llmtasks submit summarize --all", "llmtasks watch BATCH")

#: Neither takes modules from the working directory: a folder `workers` there is not ours.
_PYTHON = (sys.executable, "-P")
_WORKER = (*_PYTHON, "-m", "llmtasks", "worker")
_FLOWER = (*_PYTHON, "-c", "from workers.app import app; app.start(['flower'])", "flower")


@click.command()
@click.option(
    "--workers", "count", type=click.IntRange(1), default=1, show_default=True, help="Processes."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    help="Jobs at once in each worker; default from the settings.",
)
@click.option("--flower/--no-flower", default=True, help="Watch the workers in a browser.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Flower's; default from the settings, or the next.",
)
def up(count: int, concurrency: int | None, port: int | None, *, flower: bool) -> None:
    """Run it all on this machine.

    Starts the embedded Valkey where no broker is configured, migrates the database, starts workers and
    Flower, says where everything is, and keeps it running. Ctrl-C (or SIGTERM) stops it in order: model
    calls in flight have `[worker] drain_s` seconds. Ctrl-C again stops it at once; nothing is lost.
    """
    from llmtasks import checks

    settings = current()
    checks.ready(settings)
    asked = Asked()
    asked.listen()
    with contextlib.ExitStack() as ending, contextlib.suppress(KeyboardInterrupt):
        directory = directories.own(settings)
        logs = directories.own(settings, "logs")
        ending.enter_context(_alone(directory))
        watched = _flower_port(settings, port) if flower else None
        _say("starting ...")
        database = _parts(settings, ending)
        asked.counting()
        crew = Crew(
            settings,
            [_worker(number, concurrency, logs, database) for number in range(1, count + 1)],
            _flower(settings, watched, logs) if watched else None,
            asked,
        )
        try:
            if crew.start():
                _show(settings, crew, database, watched)
                crew.keep()
        finally:
            crew.stop()
    _say("stopped")


class Crew:
    """The workers and Flower, from start to stop."""

    def __init__(
        self, settings: Settings, workers: Sequence[Member], flower: Member | None, asked: Asked
    ) -> None:
        self.workers = workers
        self.flower = flower
        self._settings = settings
        self._asked = asked

    def start(self) -> bool:
        """Return when all of them work; False when we are asked to stop instead.

        Raises:
            JobError: A worker cannot start; with its last words.
        """
        slow = time.monotonic() + SLOW_S
        members = [*self.workers, *([self.flower] if self.flower else [])]
        while not all(member.ready or member.hopeless for member in members):
            self._look()
            if self._asked.times:
                return False
            if time.monotonic() > slow:
                slow = float("inf")
                late = next(m for m in members if not m.ready and not m.hopeless)
                _say(f"{late.name} is not ready after {SLOW_S:.0f} s; see {late.log}")
            time.sleep(LOOK_S)
        return True

    def keep(self) -> None:
        """Keep them running until we are asked to stop.

        Raises:
            JobError: A worker cannot start any more.
        """
        while not self._asked.times:
            self._look()
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """The workers first, all at once, then Flower; the embedded server ends last, with its keeper."""
        drain_s = self._settings.worker.drain_s
        for worker in self.workers:
            worker.ask_to_end()
        if any(worker.running for worker in self.workers):
            _say(f"stopping: model calls in flight have {drain_s:g} s (Ctrl-C again: at once)")
        wait_for(self.workers, drain_s + WORKER_GRACE_S, lambda: self._asked.times > 1)
        for worker in self.workers:
            if worker.running:
                lease_s = self._settings.delivery.lease_s
                _say(f"{worker.name} is killed; its jobs are taken over after {lease_s:g} s")
            worker.stop()
        if self.flower:
            self.flower.stop(FLOWER_GRACE_S)

    def _look(self) -> None:
        for member in (*self.workers, *([self.flower] if self.flower else [])):
            if said := member.look():
                _say(said)
        for worker in self.workers:
            if worker.hopeless:
                words = "\n".join(f"    {line}" for line in worker.last_words())
                raise JobError(f"{worker.name} cannot start. Its last lines:\n{words}")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One `up` per data directory: its logs and its server are there."""
    with processes.alone(directory / "up.lock") as holder:
        if holder is not None:
            raise UsageError(
                f"llmtasks up runs already for {directory} (process {holder or 'unknown'});"
                " stop it, or give another LLMTASKS_LOCAL__DATA_DIR"
            )
        yield


def _parts(settings: Settings, ending: contextlib.ExitStack) -> Database:
    """What the workers need: the broker and the database, each of which answers."""
    if settings.embedded:
        from llmtasks.local import EmbeddedServer

        server = EmbeddedServer(settings)
        ending.callback(server.stop)
        server.start()
    require_servers(settings)
    from llmtasks.store import schema
    from llmtasks.store.engine import database_url, open_database

    schema.upgrade(database_url(settings))
    database = open_database(settings)
    ending.callback(database.close)
    return database


def _worker(number: int, concurrency: int | None, logs: Path, database: Database) -> Member:
    name = f"worker-{number}"
    return Member(
        name,
        [
            *_WORKER,
            # Another `up` of this machine, on the same broker, has a `worker-1` too.
            f"--name={name}-{os.getpid()}",
            *([f"--concurrency={concurrency}"] if concurrency else []),
        ],
        logs / f"{name}.log",
        is_ready=functools.partial(_registered, database),
        # So that it drains, and then ends, when we are killed.
        orphaned=signal.SIGTERM,
    )


def _registered(database: Database, pid: int) -> bool:
    """The worker process has said that it is there."""
    return pid in _metrics_urls(database)


def _metrics_urls(database: Database) -> dict[int, str | None]:
    """By process id, of the workers on this machine; none while the database does not answer."""
    from llmtasks.errors import StoreUnavailable
    from llmtasks.store import workers

    host = socket.gethostname()
    try:
        return {w.pid: w.metrics_url for w in workers.live(database) if w.hostname == host}
    except StoreUnavailable:
        return {}


def _flower(settings: Settings, port: int, logs: Path) -> Member:
    host = settings.flower.host

    def answers(_pid: int) -> bool:
        with socket.socket(_family(host)) as probe:
            probe.settimeout(LOOK_S)
            return probe.connect_ex((_reachable(host), port)) == 0

    return Member(
        "flower",
        _FLOWER,
        logs / "flower.log",
        is_ready=answers,
        env={**_keyless(settings), "FLOWER_ADDRESS": host, "FLOWER_PORT": str(port)},
    )


def _keyless(settings: Settings) -> dict[str, str]:
    """Our environment without the providers' keys, for who calls none of them."""
    keys = {provider.api_key_env for provider in settings.providers} | set(ASSUMED)
    return {name: value for name, value in os.environ.items() if name not in keys}


def _flower_port(settings: Settings, wanted: int | None) -> int:
    """The port that was asked for, else the first free one from the configured one upwards."""
    host = settings.flower.host
    if wanted is not None:
        if not _is_free(host, wanted):
            raise UsageError(f"--port: {wanted} is in use; give another, or none for the next free")
        return wanted
    first = settings.flower.port
    candidates = range(first, min(first + PORTS, 65536))
    port = next((port for port in candidates if _is_free(host, port)), None)
    if port is None:
        raise UsageError(
            f"no port from {first} to {candidates[-1]} is free for Flower; give --port, or"
            " --no-flower"
        )
    if port != first:
        _say(f"port {first} is in use; Flower takes {port}")
    return port


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Flower's server does
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise ConfigurationError(
                f"flower.host: {host}:{port} cannot be used: {error.strerror or error}"
            ) from None
    return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _reachable(host: str) -> str:
    """An address that a listener on this one answers at, from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound


def _show(settings: Settings, crew: Crew, database: Database, port: int | None) -> None:
    """Where everything is, and what to do next."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(f"llmtasks {__version__} is up", "bold green"), "\n")
    for label, value in _places(settings, crew, database, port):
        console.print(Text.assemble("  ", (f"{label:<10}", "cyan"), value))
    console.print("\nNext, in another terminal:", *NEXT, sep="\n  ")
    console.print(Text("\nready; Ctrl-C stops it", "bold"))
    sys.stdout.flush()


def _places(
    settings: Settings, crew: Crew, database: Database, port: int | None
) -> Iterator[tuple[str, str]]:
    """Label and value of each line."""
    from llmtasks.store import probe

    directory = settings.data_dir
    yield "settings", configuration(current_origin()).detail
    embedded = f"embedded Valkey at {_short(settings.socket_path)}"
    yield "broker", embedded if settings.embedded else public(settings.broker_url)
    if settings.redis.url:
        yield "redis", public(settings.redis_url)
    yield "database", _short(probe.address(settings))
    yield "data", _short(directory)
    yield "logs", _short(directory / "logs")
    if crew.flower and crew.flower.ready:
        user = f" (user {settings.flower.user})" if settings.flower.password else ""
        yield "flower", f"http://{_bracketed(_reachable(settings.flower.host))}:{port}{user}"
    metrics = _metrics_urls(database)
    for worker in crew.workers:
        pid = worker.pid or 0
        yield worker.name, f"process {pid}, metrics {metrics.get(pid) or 'off'}"
    width = max(len(provider.name) for provider in settings.providers)
    for number, provider in enumerate(settings.providers):
        yield (
            "providers" if number == 0 else "",
            f"{provider.name:<{width}}  {provider.model}, {limits(provider)}",
        )


def _short(path: Path | str) -> str:
    """With `~` for the home directory."""
    text = str(path)
    home = str(Path.home())
    return f"~{text.removeprefix(home)}" if text.startswith(f"{home}{os.sep}") else text


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(remark: str) -> None:
    """A line for people; nobody may be left to read it when the terminal is closed."""
    with contextlib.suppress(OSError):
        print(f"llmtasks: {remark}", file=sys.stderr, flush=True)
