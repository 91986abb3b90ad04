"""What `llmtasks doctor` finds: pure functions from what was asked to what it means."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from llmtasks.addresses import public
from llmtasks.cli import output
from llmtasks.settings import Origin, Provider, Settings
from llmtasks.task_types import queue_name

if TYPE_CHECKING:
    from llmtasks.admission.probe import ServerState
    from llmtasks.jobs import JobState
    from llmtasks.providers.probe import Reach
    from llmtasks.store.outbox import Waiting
    from llmtasks.store.probe import DatabaseState
    from llmtasks.store.workers import WorkerRow

Status = Literal["ok", "warn", "fail"]

#: Bytes that should be free where documents and messages are kept.
ROOM: Final = 1_000_000_000

#: Beginnings of a `maxmemory-policy` under which a Redis keeps limits and leases: they do not expire.
_KEEPS_LIMITS: Final = ("noeviction", "volatile-")

#: Names that are listed before "and more".
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, how it stands, and, unless that is well, what to do."""

    check: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """What did not answer, and why."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """The data directory; of one that does not exist yet, what holds for where it will be made."""

    path: Path
    exists: bool
    writable: bool
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that was asked.

    `refused` says why no worker would start, `server` where the embedded server's program is, `task_types`
    what keeps each from loading. `keys` has an error for each provider whose key is not there, `reached`
    the others. `prices` are US dollars of a million input and output tokens. `listens`: something answers
    on Flower's port.
    """

    settings: Settings
    origin: Origin
    versions: str
    refused: str | Unknown | None
    directory: Directory | Unknown
    server: Path | Unknown
    broker: ServerState | Unknown
    redis: ServerState | Unknown | None
    database: DatabaseState | Unknown
    backlog: Mapping[str, Mapping[JobState, int]] | Unknown
    outbox: Waiting | Unknown | None
    task_types: Mapping[str, str | None] | Unknown
    keys: Mapping[str, str]
    reached: Mapping[str, Reach | Unknown]
    prices: Mapping[str, tuple[float, float] | None] | Unknown
    extras: Mapping[str, bool]
    listens: bool | Unknown


def diagnose(facts: Facts) -> list[Finding]:
    """What the facts mean, in the order in which they are to be mended."""
    return list(_all(facts))


def _all(facts: Facts) -> Iterator[Finding]:
    settings = facts.settings
    yield Finding(check="llmtasks", status="ok", detail=facts.versions)
    yield configuration(facts.origin)
    if not _said_with_a_provider(facts):
        yield completeness(facts.refused)
    yield data_directory(facts.directory)
    yield broker(settings, facts.broker, facts.server)
    if facts.redis is not None:
        yield redis(settings, facts.redis)
    yield database(settings, facts.database)
    yield workers(facts.database)
    yield from task_types(facts.task_types)
    if not isinstance(facts.database, Unknown) and not facts.database.failure:
        yield from queues(facts)
        if facts.outbox is not None:
            yield outbox(facts.outbox)
    for provider in settings.providers:
        yield endpoint(provider, facts.keys.get(provider.name), facts.reached.get(provider.name))
        yield quota(provider)
        yield price(provider, facts.prices)
    yield extras(facts.extras)
    yield flower(settings, facts.listens)


def _said_with_a_provider(facts: Facts) -> bool:
    """A missing key is what keeps a worker from starting; its provider's line says so."""
    refused = facts.refused
    return isinstance(refused, str) and any(error in refused for error in facts.keys.values())


def unreadable(versions: str, error: str) -> list[Finding]:
    """All there is to say when the settings cannot be read."""
    return [
        Finding(check="llmtasks", status="ok", detail=versions),
        Finding(
            check="configuration",
            status="fail",
            detail=error,
            fix="correct it; nothing starts before",
        ),
    ]


def configuration(origin: Origin) -> Finding:
    """Which file, which overrides; names only."""
    said = [f"read from {origin.path}" if origin.path else "no file, so defaults"]
    if origin.overridden:
        said.append(f"overridden by {', '.join(sorted(set(origin.overridden.values())))}")
    said += [f"{name} assumed from {variable}" for name, variable in origin.assumed.items()]
    return Finding(check="configuration", status="ok", detail="; ".join(said))


def completeness(refused: str | Unknown | None) -> Finding:
    """Whether a worker would start with these settings."""
    if isinstance(refused, Unknown):
        return _unanswered("settings", refused, "see what your functions and task types wait for")
    if refused:
        return Finding(
            check="settings",
            status="fail",
            detail=refused,
            fix="correct it; no worker starts before",
        )
    return Finding(check="settings", status="ok", detail="complete: a worker can start")


def data_directory(found: Directory | Unknown) -> Finding:
    """The embedded server, SQLite and logs are there."""
    if isinstance(found, Unknown):
        return _unanswered("data directory", found, "set local.data_dir to a disk that answers")
    where = f"{found.path}" if found.exists else f"{found.path}, made at the first use"
    if not found.writable:
        return Finding(
            check="data directory",
            status="fail",
            detail=f"{where}: cannot be written to",
            fix=f"chown it to you, or set local.data_dir: mkdir -p {shlex.quote(str(found.path))}",
        )
    free = f"{found.free / 1e9:,.1f} GB free"
    if found.free < ROOM:
        return Finding(
            check="data directory",
            status="warn",
            detail=f"{where}: only {free}",
            fix="make room, or set local.data_dir to another disk",
        )
    return Finding(check="data directory", status="ok", detail=f"{where}: {free}")


def broker(settings: Settings, state: ServerState | Unknown, server: Path | Unknown) -> Finding:
    """What carries the messages, and whether it keeps them."""
    if settings.embedded:
        return _embedded(state, server)
    address = public(settings.broker_url)
    if found := _unreached("broker", address, state, "broker.url"):
        return found
    assert not isinstance(state, Unknown)
    detail = f"{state.software} at {address}"
    if state.cluster:
        return Finding(
            check="broker",
            status="fail",
            detail=f"{detail}: is a node of a cluster, which cannot carry messages",
            fix="set broker.url to a server of its own",
        )
    if state.policy not in (None, "noeviction"):
        return Finding(
            check="broker",
            status="warn",
            detail=f"{detail}: maxmemory-policy {state.policy} drops messages when memory is short",
            fix="set maxmemory-policy noeviction",
        )
    if state.persistent is False:
        return Finding(
            check="broker",
            status="warn",
            detail=f"{detail}: forgets its messages at a restart (they are sent again, later)",
            fix="set appendonly yes",
        )
    return Finding(check="broker", status="ok", detail=f"{detail}, noeviction, AOF on")


def _embedded(state: ServerState | Unknown, server: Path | Unknown) -> Finding:
    if isinstance(server, Unknown):
        return Finding(
            check="broker",
            status="fail",
            detail="none is configured, and no embedded server is installed",
            fix="set broker.url, or pip install 'llmtasks[embedded]'",
        )
    if isinstance(state, Unknown):
        return _unanswered("broker", state, "end the embedded server's process, then llmtasks up")
    running = "does not run: it starts with a worker" if state.failure else "runs"
    return Finding(check="broker", status="ok", detail=f"embedded Valkey, {running}")


def redis(settings: Settings, state: ServerState | Unknown) -> Finding:
    """What the fleet agrees on: limits must not be forgotten while they hold."""
    address = public(settings.redis_url)
    if found := _unreached("redis", address, state, "redis.url"):
        return found
    assert not isinstance(state, Unknown)
    detail = f"{state.software} at {address}"
    if state.cluster is not settings.redis.cluster:
        return Finding(
            check="redis",
            status="fail" if state.cluster else "warn",
            detail=f"{detail}: {'is a' if state.cluster else 'is no'} node of a cluster",
            fix=f"set redis.cluster to {str(state.cluster).lower()}, or correct redis.url",
        )
    if state.policy is not None and not state.policy.startswith(_KEEPS_LIMITS):
        return Finding(
            check="redis",
            status="warn",
            detail=f"{detail}: maxmemory-policy {state.policy} forgets limits when memory is short",
            fix="set maxmemory-policy noeviction, or a volatile- one",
        )
    return Finding(check="redis", status="ok", detail=f"{detail}, {state.policy or 'answers'}")


def database(settings: Settings, state: DatabaseState | Unknown) -> Finding:
    """The truth: that it answers, and has this version's schema."""
    ours = settings.database.url is None
    where = "the file" if ours else "database.url"
    if isinstance(state, Unknown):
        address = "SQLite" if settings.database.url is None else public(settings.database.url)
        return Finding(
            check="database",
            status="fail",
            detail=f"{address} does not answer: {state.why}",
            fix=f"start it, or correct {where}",
        )
    if state.failure:
        return Finding(
            check="database",
            status="fail",
            detail=f"{state.address} does not answer: {state.failure}",
            fix="see who may read and write it" if ours else f"start it, or correct {where}",
        )
    if state.revision == state.head:
        detail = f"{state.software} at {state.address}, schema {state.revision}"
        return Finding(check="database", status="ok", detail=detail)
    return _other_schema(state, ours=ours)


def _other_schema(state: DatabaseState, *, ours: bool) -> Finding:
    if state.revision is not None and state.revision > state.head:
        return Finding(
            check="database",
            status="fail",
            detail=f"{state.address} has a newer schema ({state.revision}, not {state.head})",
            fix="install a newer llmtasks",
        )
    has = f"an older schema ({state.revision})" if state.revision else "no schema yet"
    if ours:
        return Finding(
            check="database",
            status="ok",
            detail=f"SQLite at {state.address}, {has}: it is made at the next use",
        )
    has = has if state.exists else "no file yet"
    return Finding(
        check="database", status="fail", detail=f"{state.address} has {has}", fix="llmtasks migrate"
    )


def workers(state: DatabaseState | Unknown) -> Finding:
    """Who works now."""
    if isinstance(state, Unknown) or state.failure:
        return _unknown_workers()
    if not state.workers:
        return Finding(
            check="workers",
            status="warn",
            detail="none: jobs wait for one",
            fix="llmtasks up, or llmtasks worker",
        )
    slots = sum(worker.concurrency for worker in state.workers)
    names = [f"{worker.hostname}/{worker.pid}" for worker in state.workers]
    return Finding(
        check="workers",
        status="ok",
        detail=f"{len(names)} for {slots} jobs at once: {_some(names)}",
    )


def _unknown_workers() -> Finding:
    return Finding(
        check="workers",
        status="warn",
        detail="unknown, without the database",
        fix="mend the database first",
    )


def task_types(found: Mapping[str, str | None] | Unknown) -> Iterator[Finding]:
    """Ours and those of installed packages."""
    if isinstance(found, Unknown):
        yield _unanswered("task types", found, "see the installed packages that add some")
        return
    loaded = [name for name, error in found.items() if error is None]
    yield Finding(check="task types", status="ok", detail=", ".join(loaded) or "none")
    for name, error in found.items():
        if error is not None:
            yield Finding(
                check=f"task type {name}",
                status="fail",
                detail=error,
                fix="correct that package, or uninstall it",
            )


def queues(facts: Facts) -> Iterator[Finding]:
    """What is to be done for each task type, and whether anybody does it."""
    if isinstance(facts.backlog, Unknown):
        yield _unanswered("queues", facts.backlog, "count again with --patience 10", status="warn")
        return
    alive = () if isinstance(facts.database, Unknown) else facts.database.workers
    known = () if isinstance(facts.task_types, Unknown) else facts.task_types
    for name in dict.fromkeys([*known, *facts.backlog]):
        yield _queue(name, facts.backlog.get(name, {}), alive)


def _queue(name: str, open_jobs: Mapping[JobState, int], alive: tuple[WorkerRow, ...]) -> Finding:
    serving = sum(queue_name(name) in worker.queues for worker in alive)
    detail = ", ".join(f"{count:,} {state}" for state, count in open_jobs.items()) or "empty"
    # That there is no worker at all is said once.
    if not serving and (alive or open_jobs):
        return Finding(
            check=f"queue {name}",
            status="warn",
            detail=f"{detail}; no worker serves it",
            fix=f"llmtasks worker --queues {name}",
        )
    return Finding(check=f"queue {name}", status="ok", detail=detail)


def outbox(found: Waiting | Unknown) -> Finding:
    """What `[results] sink` has still to be given."""
    if isinstance(found, Unknown):
        return _unanswered("results.sink", found, "count again with --patience 10", status="warn")
    if not found.count:
        return Finding(check="results.sink", status="ok", detail="has been given everything")
    detail = (
        f"{found.count:,} ended jobs to be given, the first ended {found.oldest_s or 0:.0f} s ago"
    )
    if found.failing:
        return Finding(
            check="results.sink",
            status="warn",
            detail=f"{detail}; it refused {found.failing:,}",
            fix="see the worker's log for what it raises",
        )
    return Finding(check="results.sink", status="ok", detail=detail)


def endpoint(provider: Provider, no_key: str | None, reach: Reach | Unknown | None) -> Finding:
    """Whether the key is there, and the provider answers and takes it. Nothing was paid to know."""
    check = f"provider {provider.name}"
    if no_key is not None or reach is None:
        return Finding(
            check=check,
            status="fail",
            detail=f"the environment variable {provider.api_key_env} is not set",
            fix=f"export {provider.api_key_env}=..., or remove the provider",
        )
    where = public(provider.base_url) if provider.base_url else provider.kind
    why = reach.why if isinstance(reach, Unknown) else reach.failure
    if why is not None or isinstance(reach, Unknown):
        fix = f"start it, or correct providers.{provider.name}.base_url"
        if provider.base_url is None:
            fix = "see whether this machine reaches the internet (HTTPS_PROXY?)"
        return Finding(check=check, status="fail", detail=f"{where}: {why}", fix=fix)
    assert reach.status is not None
    if reach.status == HTTPStatus.OK:
        return _listed(provider, where, reach.models)
    return _answered(provider, where, reach.status)


def _listed(provider: Provider, where: str, models: frozenset[str] | None) -> Finding:
    check, model = f"provider {provider.name}", provider.model
    if models is None:
        return Finding(check=check, status="ok", detail=f"{where} answers, and lists no models")
    # An alias is listed under its dated name: claude-haiku-4-5-20251001.
    if any(one == model or one.startswith(f"{model}-") for one in models):
        return Finding(check=check, status="ok", detail=f"{where} answers, and lists {model}")
    return Finding(
        check=check,
        status="warn",
        detail=f"{where} answers, and does not list {model}",
        fix=f"correct providers.{provider.name}.model; it lists {_some(sorted(models)) or 'none'}",
    )


def _answered(provider: Provider, where: str, status: int) -> Finding:
    """An answer that is no list of models."""
    check, key = f"provider {provider.name}", f"providers.{provider.name}"
    variable = provider.api_key_env
    if status == HTTPStatus.UNAUTHORIZED:
        return Finding(
            check=check,
            status="fail",
            detail=f"{where} refuses the key of {variable}" if variable else f"{where} wants a key",
            fix=f"put a valid key into {variable}" if variable else f"set {key}.api_key_env",
        )
    says, fix = f"answers HTTP {status}", "ask again later; jobs wait until it is well"
    if status == HTTPStatus.FORBIDDEN:
        says = f"answers, but the key of {variable or 'nobody'} may not list models"
        fix = "give the key the right to do so, or see whether a first job works"
    elif status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        says = f"answers, and has no list of models (HTTP {status})"
        fix = f"see whether {key}.base_url is whole; most end in /v1"
    elif HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        says = f"answers with a redirect (HTTP {status}), which no key is sent after"
        fix = f"set {key}.base_url to where it leads"
    return Finding(check=check, status="warn", detail=f"{where} {says}", fix=fix)


def quota(provider: Provider) -> Finding:
    """What the fleet keeps to."""
    said = output.limits(provider)
    bounded = said != output.NO_LIMIT
    return Finding(
        check=f"limits {provider.name}",
        status="ok" if bounded else "warn",
        detail=said if bounded else "none configured: calls are as many as workers have slots",
        fix=None
        if bounded
        else f"set providers.{provider.name}.requests_per_minute and tokens_per_minute",
    )


def price(provider: Provider, known: Mapping[str, tuple[float, float] | None] | Unknown) -> Finding:
    """What the list of prices says; where it says nothing, costs are unknown, not nothing."""
    check = f"price {provider.name}"
    found = None if isinstance(known, Unknown) else known.get(provider.name)
    if found is None:
        return Finding(
            check=check, status="ok", detail=f"unknown for {provider.model}: so are its costs"
        )
    return Finding(check=check, status="ok", detail=output.price(found))


def extras(found: Mapping[str, bool]) -> Finding:
    """What is installed beyond the core; nothing of it is required."""
    there = [name for name, installed in found.items() if installed]
    missing = [name for name, installed in found.items() if not installed]
    said = [f"installed: {', '.join(there) or 'none'}"]
    if missing:
        said.append(f"not installed: pip install 'llmtasks[{','.join(missing)}]'")
    return Finding(check="extras", status="ok", detail="; ".join(said))


def flower(settings: Settings, listens: bool | Unknown) -> Finding:  # noqa: FBT001  # a fact
    """Whether there is something to look at."""
    where = f"{settings.flower.host}:{settings.flower.port}"
    if listens is True:
        return Finding(check="flower", status="ok", detail=f"port {where} answers")
    return Finding(
        check="flower", status="ok", detail=f"port {where} is free: `llmtasks up` starts it there"
    )


def _unreached(check: str, address: str, state: ServerState | Unknown, key: str) -> Finding | None:
    """What to say of a server that does not answer; None of one that does."""
    why = state.why if isinstance(state, Unknown) else state.failure
    if why is None:
        return None
    return Finding(
        check=check,
        status="fail",
        detail=f"{address} does not answer: {why}",
        fix=f"start it, or correct {key}",
    )


def _unanswered(check: str, what: Unknown, fix: str, status: Status = "fail") -> Finding:
    return Finding(check=check, status=status, detail=what.why, fix=fix)


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
