"""`llmtasks doctor`: asks everything at once, each for a bounded time, and says what it found."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import click

from llmtasks import __version__, logs
from llmtasks.cli.diagnosis import (
    Directory,
    Facts,
    Finding,
    Unknown,
    diagnose,
    unreadable,
)
from llmtasks.cli.output import json_option, print_json
from llmtasks.errors import ConfigurationError, LLMTasksError
from llmtasks.settings import Provider, Settings, api_key, current, current_origin

T = TypeVar("T")

#: Seconds that whatever is asked may take; a network's name server and TLS included.
PATIENCE_S = 1.5

_EXTRA = re.compile(r"([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['\"]([\w-]+)['\"]")

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command()
@json_option
@click.option(
    "--patience",
    type=click.FloatRange(min=0, min_open=True),
    default=PATIENCE_S,
    show_default=True,
    help="Seconds that whatever is asked may take.",
)
def doctor(patience: float, *, as_json: bool) -> None:
    """What is configured, what answers, what is missing.

    Asks everything at once, changes nothing, pays nothing, prints no key. Exit code 0 when nothing failed,
    1 when something did, 2 when the configuration cannot be read.
    """
    versions = f"{__version__} on Python {platform.python_version()}, {platform.system()}"
    late = False
    try:
        settings, origin = current(), current_origin()
    except ConfigurationError as error:
        findings, code = unreadable(versions, str(error)), 2
    else:
        questions = _questions(settings, patience)
        answers = ask(questions, patience)
        late = any(answer is LATE for answer in answers.values())
        findings = diagnose(
            Facts(
                settings=settings,
                origin=origin,
                versions=versions,
                keys=_missing_keys(settings),
                extras=_extras(),
                **_facts(settings, answers),
            )
        )
        code = int(any(finding.status == "fail" for finding in findings))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _show(findings)
    if late:
        # A name server that hangs would hold up the interpreter's end, which joins asyncio's threads.
        sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code)


# --- asking ---------------------------------------------------------------------------------------------

#: No answer within the time.
LATE = Unknown("no answer in time")


def ask(questions: Mapping[str, Callable[[], T]], patience_s: float) -> dict[str, T | Unknown]:
    """Ask everything at once; what has no answer after `patience_s` is `LATE`, and goes on behind us."""
    answers: dict[str, T | Unknown] = {}

    def answer(name: str, question: Callable[[], T]) -> None:
        try:
            found: T | Unknown = question()
        except LLMTasksError as error:
            found = Unknown(str(error))
        except Exception as error:  # noqa: BLE001  # one defect must not hide the other answers
            found = Unknown(f"{type(error).__name__} at {logs.place(error)}")
        answers[name] = found

    threads = [threading.Thread(target=answer, args=one, daemon=True) for one in questions.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: answers.get(name, LATE) for name in questions}


def _questions(settings: Settings, patience_s: float) -> dict[str, Callable[[], Any]]:
    """Everything that waits for somebody else. Modules are imported here, before the clock runs."""
    from llmtasks import checks, local
    from llmtasks.admission import probe as servers
    from llmtasks.providers import prices
    from llmtasks.providers import probe as providers
    from llmtasks.store import probe as store

    # A little less, so that a question's own reason comes before ours.
    timeout_s = 0.9 * patience_s
    questions: dict[str, Callable[[], Any]] = {
        "refused": functools.partial(_refused, checks.ready, settings),
        "directory": functools.partial(_directory, settings),
        "server": lambda: Path(local.server_path()),
        "broker": functools.partial(servers.probe, settings.broker_url, timeout_s),
        "database": functools.partial(store.probe, settings, timeout_s),
        "backlog": functools.partial(store.backlog, settings, timeout_s),
        "task_types": _task_types,
        "prices": functools.partial(_prices, prices.per_mtok_usd, settings),
        "listens": functools.partial(_listens, settings, timeout_s),
    }
    if settings.redis.url is not None:
        questions["redis"] = functools.partial(servers.probe, settings.redis_url, timeout_s)
    if settings.results.sink is not None:
        questions["outbox"] = functools.partial(store.undelivered, settings, timeout_s)
    missing = _missing_keys(settings)
    for provider in settings.providers:
        if provider.name not in missing:
            questions[_reach(provider)] = functools.partial(
                providers.probe, provider, api_key(provider), timeout_s
            )
    return questions


def _reach(provider: Provider) -> str:
    return f"provider {provider.name}"


def _facts(settings: Settings, answers: dict[str, Any]) -> dict[str, Any]:
    """The answers by the names of the facts."""
    reached = {p.name: answers.pop(_reach(p)) for p in settings.providers if _reach(p) in answers}
    return {"redis": None, "outbox": None, **answers, "reached": reached}


def _refused(check: Callable[[Settings], object], settings: Settings) -> str | None:
    try:
        check(settings)
    except ConfigurationError as error:
        return str(error)
    return None


def _task_types() -> dict[str, str | None]:
    from llmtasks import task_types

    found: dict[str, str | None] = {}
    for name in task_types.names():
        try:
            task_types.get(name)
            found[name] = None
        except ConfigurationError as error:
            found[name] = str(error)
    return found


def _prices(
    price: Callable[..., tuple[float, float] | None], settings: Settings
) -> dict[str, tuple[float, float] | None]:
    return {p.name: price(p.kind, p.base_url, p.model) for p in settings.providers}


def _directory(settings: Settings) -> Directory:
    path = settings.data_dir
    # Path.exists() raises where we may not look, which is an answer here.
    there = next(one for one in (path, *path.parents) if os.path.exists(one))  # noqa: PTH110
    return Directory(
        path=path,
        exists=there == path,
        writable=there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        free=shutil.disk_usage(there).free,
    )


def _listens(settings: Settings, timeout_s: float) -> bool:
    try:
        socket.create_connection((settings.flower.host, settings.flower.port), timeout_s).close()
    except OSError:
        return False
    return True


# --- looking --------------------------------------------------------------------------------------------


def _missing_keys(settings: Settings) -> dict[str, str]:
    missing = {}
    for provider in settings.providers:
        try:
            api_key(provider)
        except ConfigurationError as error:
            missing[provider.name] = str(error)
    return missing


def _extras() -> dict[str, bool]:
    """Whether the packages of each extra are installed, as our own metadata name them."""
    found: dict[str, bool] = {}
    for requirement in metadata.requires("llmtasks") or ():
        if parts := _EXTRA.match(requirement):
            package, extra = parts.groups()
            found[extra] = found.get(extra, True) and _is_installed(package)
    return found


def _is_installed(package: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


# --- showing --------------------------------------------------------------------------------------------


def _show(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sys.stdout.isatty():
        _show_plainly(findings)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        detail = Text(finding.detail)
        if finding.fix:
            detail.append(f"\n→ {finding.fix}", "bold")
        table.add_row(Text(finding.status, _COLOURS[finding.status]), Text(finding.check), detail)
    Console(highlight=False).print(table)


def _show_plainly(findings: Sequence[Finding]) -> None:
    """Without a terminal: a line each, and one for what to do."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{finding.status:<4}  {finding.check:<{width}}  {finding.detail}")
        if finding.fix:
            print(f"{'':<{width + 8}}fix: {finding.fix}")
