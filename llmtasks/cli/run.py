"""`llmtasks run TASK PATH...`: everything in one command.

Starts a worker of its own (which keeps the embedded Valkey where no broker is configured), stores the
documents, submits, shows the progress, writes the results, and stops what it started.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from llmtasks import checks, client, directories, processes
from llmtasks.cli import INTERRUPTED, export, files, progress
from llmtasks.cli.asked import Asked
from llmtasks.cli.estimate import estimate_lines
from llmtasks.cli.options import checked_options, deadline_option, task_options, to_option
from llmtasks.cli.output import (
    counted,
    exit_code,
    json_option,
    limits,
    print_json,
    status_json,
    status_lines,
    tenant_option,
    visible,
)
from llmtasks.cli.progress import Sight
from llmtasks.cli.servers import require_servers
from llmtasks.client import Batch, JobResult
from llmtasks.errors import JobError, UnknownJob, UsageError
from llmtasks.estimates import Estimate, Estimator
from llmtasks.jobs import JobState
from llmtasks.planning import plan
from llmtasks.settings import Settings, current, current_origin
from llmtasks.store.batches import BatchStatus
from llmtasks.store.process import database

#: Seconds beyond the worker's own drain before it is killed.
GRACE_S = 20.0

#: Seconds that giving up what is in flight may take.
HURRY_S = 10.0

#: Seconds between two looks at a worker that is to end.
LOOK_S = 0.05

#: Reasons of failure that are told at the end.
NAMED_FAILURES = 3

#: Logs of runs that were stopped or failed, the newest of which are kept.
KEPT_LOGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of the files, and what asking about them will take."""

    ids: Sequence[str]
    statuses: Mapping[str, int]
    estimate: Estimate

    @property
    def errors(self) -> int:
        """Files that are no documents."""
        return self.statuses.get("error", 0)


@dataclass(frozen=True, slots=True)
class Failures:
    """Errors by their type, with the first message of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def counting(self, rows: Iterable[JobResult]) -> Iterator[JobResult]:
        """The rows as they come."""
        for row in rows:
            if row.error_type is not None and row.state == JobState.FAILED:
                self.counts[row.error_type] += 1
                self.first.setdefault(row.error_type, row.error_message or "")
            yield row

    def lines(self) -> Iterator[str]:
        """The commonest ones."""
        for name, count in self.counts.most_common(NAMED_FAILURES):
            yield f"  {count:,} failed: {name}: {visible(self.first[name])}"


@click.command()
@click.argument("task_type", metavar="TASK")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@to_option
@task_options
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write results here: .jsonl, .csv or .parquet."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask before paying.")
@click.option("--fresh", is_flag=True, help="Ask again, although the answer is stored.")
@click.option("--concurrency", type=click.IntRange(1), help="Jobs at once.")
@deadline_option
@tenant_option
@json_option
def run(
    task_type: str,
    paths: tuple[str, ...],
    to: str | None,
    options: tuple[str, ...],
    out: Path | None,
    concurrency: int | None,
    deadline: float | None,
    tenant: str,
    *,
    yes: bool,
    fresh: bool,
    as_json: bool,
) -> int:
    """Summarize, extract from, or translate files and folders, in one command.

    For example: llmtasks run translate docs/ --to es --out spanish.jsonl

    What is not configured runs embedded; without llmtasks.toml a key in OPENAI_API_KEY or
    ANTHROPIC_API_KEY is used, after a question. Run it again on the same files: only what is new or
    changed is paid for.
    """
    checked = checked_options(task_type, options, to)
    settings = current()
    checks.ready(settings)
    form = export.form_of(out) if out else "jsonl"
    require_servers(settings)
    asked = Asked()
    asked.listen()
    _tidy(settings)
    stored = _store(settings, task_type, checked, paths, tenant, fresh=fresh)
    if not stored.ids:
        _say("no document is left, so nothing is asked")
        return 1
    if not _agreed(task_type, stored, yes=yes):
        return 1
    asked.counting()
    submit = functools.partial(
        client.submit_batch,
        stored.ids,
        task_type,
        tenant=tenant,
        fresh=fresh,
        deadline_s=deadline,
        **checked,
    )
    status = _work(settings, submit, task_type, concurrency, asked)
    if status.cancelled:
        return INTERRUPTED if asked.times else 1
    try:
        _report(status, stored, out, form, as_json=as_json)
    except (OSError, UsageError):
        _say(f"the results are stored: llmtasks results {status.batch_id}")
        raise
    return 1 if stored.errors else exit_code(status)


def _tidy(settings: Settings) -> None:
    """Cancel what runs that were killed have left: a worker of ours would ask it, and nobody was told."""
    for left in directories.own(settings, "runs").iterdir():
        with processes.alone(left) as holder:
            if holder is None:
                if count := _cancel(left.name):
                    _say(
                        f"a run that was killed left {counted(count, 'job')}, now cancelled;"
                        f" to go on with it run its command again, or: llmtasks retry {left.name}"
                    )
                left.unlink(missing_ok=True)


def _store(
    settings: Settings,
    task_type: str,
    options: dict[str, Any],
    paths: tuple[str, ...],
    tenant: str,
    *,
    fresh: bool,
) -> Stored:
    """Store the files' texts, and count what asking about them will take."""
    estimator = Estimator(plan(settings, task_type, options), database(), tenant, fresh)
    ids: list[str] = []
    statuses: Counter[str] = Counter()
    for chunk in files.read(paths, None, tenant):
        good = files.told(chunk)
        estimator.add(good)
        statuses.update(client.add_documents(good))
        statuses["error"] += len(chunk) - len(good)
        ids += [one.document_id for one in good]
    return Stored(ids=ids, statuses=dict(+statuses), estimate=estimator.estimate())


def _agreed(task_type: str, stored: Stored, *, yes: bool) -> bool:
    """Say what will be asked; and ask the user, where a key was found that nobody configured for this."""
    _say(*estimate_lines(stored.estimate, task_type))
    assumed = current_origin().assumed
    if not assumed or not stored.estimate.calls:
        return True
    for provider in current().providers:
        _say(
            f"  key     {assumed[provider.name]}, from the environment: {provider.model}"
            f" of {provider.name}",
            f"  limits  {limits(provider)}{_whose_limits(provider.name)}",
        )
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("this will be paid for: add --yes to go on without a question")
    return click.confirm("Go on?", default=False, err=True)


def _whose_limits(name: str) -> str:
    changed = any(key.startswith(f"providers.{name}.") for key in current_origin().overridden)
    return "" if changed else " (cautious; llmtasks.toml sets yours)"


def _work(
    settings: Settings,
    submit: Callable[..., Batch],
    task_type: str,
    concurrency: int | None,
    asked: Asked,
) -> BatchStatus:
    """Submit, and run a worker until the batch has ended, or we were asked to stop; its status.

    However this ends, no job stays behind that a later worker would find, and pay for: what is left when
    this process is killed, the next run cancels.
    """
    batch_id = uuid.uuid4().hex
    log = _log_file(settings)
    lock = directories.own(settings, "runs") / batch_id
    # Without modules from the working directory: a folder `workers` there is not ours.
    argv = [sys.executable, "-P", "-m", "llmtasks", "worker", "--queues", task_type]
    if concurrency is not None:
        argv += ["--concurrency", str(concurrency)]
    grace_s = settings.worker.drain_s + GRACE_S
    with (
        processes.alone(lock),
        processes.child(argv, log=log, grace_s=grace_s, orphaned=signal.SIGTERM) as worker,
    ):
        try:
            submit(batch_id=batch_id)
            look = functools.partial(_look, worker=worker, log=log, asked=asked)
            status = progress.follow(batch_id, alive=look, own_worker=True)
        except KeyboardInterrupt:
            try:
                status = _stop(batch_id, worker, grace_s, asked)
            finally:
                _cancel(batch_id)
        except BaseException:
            _cancel(batch_id)
            raise
        lock.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    return status


def _cancel(batch_id: str) -> int:
    """Cancel what has not ended, if there is anything; how many jobs."""
    try:
        ended = client.status(batch_id).state != "running"
    except UnknownJob:  # it was not submitted
        return 0
    return 0 if ended else client.cancel(batch_id)


def _log_file(settings: Settings) -> Path:
    folder = directories.own(settings, "logs")
    directories.trim(folder, "run-*.log", KEPT_LOGS)
    return folder / f"run-{os.getpid()}.log"


def _look(sight: Sight, *, worker: subprocess.Popen[str], log: Path, asked: Asked) -> None:
    """Whether to go on.

    Raises:
        KeyboardInterrupt: we were asked to stop.
        JobError: the worker has ended; with its last words. Or nobody accepts our keys.
    """
    if asked.times:
        raise KeyboardInterrupt
    if worker.poll() is not None:
        raise JobError(f"the worker ended: {_last_words(worker.returncode, log)}; its log: {log}")
    if refusal := _refusal(sight.status):
        raise JobError(f"{refusal}; `llmtasks doctor` says more")


def _last_words(code: int, log: Path) -> str:
    """Why it ended: its own line for it, where it could still write one."""
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line for line in said if line.startswith("llmtasks: ")]
    return visible(own[-1].removeprefix("llmtasks: ")) if own else f"exit code {code}"


def _refusal(status: BatchStatus) -> str:
    """Why no job can go on before somebody acts: a wrong key, an empty account. Mostly nothing."""
    if status.queued or status.running or not status.reasons:
        return ""
    hopeless = all(
        any(kind in reason for kind in ("AuthenticationFailed", "QuotaExhausted"))
        for reason in status.reasons
    )
    return visible(next(iter(status.reasons))) if hopeless else ""


def _stop(
    batch_id: str, worker: subprocess.Popen[str], grace_s: float, asked: Asked
) -> BatchStatus:
    """Ask no more; let the calls under way, which are paid for, come to their end."""
    client.cancel(batch_id, running=False)
    _say("stopping; calls under way may end (Ctrl-C again: give them up)")
    worker.terminate()
    deadline = time.monotonic() + grace_s
    hurried = False
    while worker.poll() is None:
        if asked.times > 1 and not hurried:
            hurried = True
            worker.send_signal(signal.SIGQUIT)
            deadline = time.monotonic() + HURRY_S
        if time.monotonic() > deadline:
            worker.kill()
        time.sleep(LOOK_S)
    _cancel(batch_id)  # what a killed worker held
    status = client.status(batch_id)
    if status.cancelled:
        _say(
            f"stopped: {status.completed:,} of {status.total:,} done, nothing more is asked."
            " To go on run the same command again: what is done is not paid again;"
            f" or: llmtasks retry {batch_id}, with a worker running"
        )
    return status


def _report(
    status: BatchStatus, stored: Stored, out: Path | None, form: str, *, as_json: bool
) -> None:
    """The results, then what it took."""
    failures = Failures()
    rows = failures.counting(client.results(batch_id=status.batch_id))
    if out is not None:
        export.export(rows, form, out)
    elif as_json or not sys.stdout.isatty():
        export.export(rows, "jsonl", None)
    else:
        _read_out(rows)
    if as_json and out is not None:
        print_json({**status_json(status), "documents": stored.statuses, "out": str(out)})
    _say(*status_lines(status))
    if out is not None:
        _say(f"  results {out}")
    if stored.errors:
        _say(f"  {counted(stored.errors, 'file')} could not be read, as said above")
    _say(*failures.lines())
    if status.failed:
        _say(f"  try the failed ones again: llmtasks retry {status.batch_id}, or the same command")


def _read_out(rows: Iterable[JobResult]) -> None:
    """For a person at a terminal."""
    for row in rows:
        print(f"\n{visible(row.document_id)}")
        if row.error_type:
            print(f"    {row.state}: {row.error_type}: {visible(row.error_message or '')}")
            continue
        text = row.output if isinstance(row.output, str) else _json(row.output)
        width = shutil.get_terminal_size().columns
        for line in text.splitlines():
            print(textwrap.fill(line, width - 1, initial_indent="    ", subsequent_indent="    "))
    print(flush=True)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _say(*lines: str) -> None:
    """Remarks go beside the data."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)
