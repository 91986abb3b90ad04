"""`llmtasks run TASK PATH...`: everything in one command.

Starts a worker of its own (which keeps the embedded Valkey where no broker is configured), stores the
documents, submits, shows the progress, writes the results, and stops what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from llmtasks import checks, client, processes
from llmtasks.cli import export, progress
from llmtasks.cli.diagnosis import limits
from llmtasks.cli.documents import NOTHING, chunks, left_out_remark
from llmtasks.cli.estimate import estimate_lines, told
from llmtasks.cli.options import checked_options, task_options, to_option
from llmtasks.cli.output import (
    counted,
    json_option,
    print_json,
    status_json,
    status_lines,
    tenant_option,
    visible,
)
from llmtasks.client import JobResult
from llmtasks.errors import JobError, UsageError
from llmtasks.estimates import Estimate, Estimator
from llmtasks.planning import plan
from llmtasks.settings import Settings, current, current_origin
from llmtasks.store.batches import BatchStatus
from llmtasks.tasks import database

#: Seconds beyond the worker's own drain before it is killed.
GRACE_S = 20.0

#: Exit code of a program that its user interrupted.
INTERRUPTED = 130


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
@tenant_option
@json_option
def run(
    task_type: str,
    paths: tuple[str, ...],
    to: str | None,
    options: tuple[str, ...],
    out: Path | None,
    concurrency: int | None,
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
    checks.check(settings)
    form = export.form_of(out) if out else "jsonl"
    with _interruptible():
        stored = _store(settings, task_type, checked, paths, tenant, fresh=fresh)
        if not stored.ids:
            _say("no document is left, so nothing is asked")
            return 1
        if not _agreed(task_type, stored, yes=yes):
            return 1
        batch = client.submit_batch(stored.ids, task_type, tenant=tenant, fresh=fresh, **checked)
        status = _work(settings, batch.batch_id, task_type, concurrency)
        if status is None:
            return INTERRUPTED
        _report(status, stored, out, form, as_json=as_json)
    return 1 if stored.errors or status.failed or status.cancelled else 0


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
    left_out: Counter[str] = Counter()
    for chunk in chunks(client.find_documents(paths, tenant=tenant, left_out=left_out)):
        good = told(chunk)
        estimator.add(good)
        statuses.update(client.add_documents(good))
        statuses["error"] += len(chunk) - len(good)
        ids += [one.document_id for one in good]
    if remark := left_out_remark(left_out):
        _say(remark)
    if not statuses:
        raise UsageError(NOTHING)
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
            f"  limits  {limits(provider)} (cautious; llmtasks.toml sets yours)",
        )
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("this will be paid for: add --yes to go on without a question")
    return click.confirm("Go on?", default=False, err=True)


def _work(
    settings: Settings, batch_id: str, task_type: str, concurrency: int | None
) -> BatchStatus | None:
    """Run a worker until the batch has ended; its status, None when the user stopped it."""
    log = _log_file(settings)
    # Without modules from the working directory: a folder `workers` there is not ours.
    argv = [sys.executable, "-P", "-m", "llmtasks", "worker", "--queues", task_type]
    if concurrency is not None:
        argv += ["--concurrency", str(concurrency)]
    grace_s = settings.worker.drain_s + GRACE_S
    with processes.child(argv, log=log, grace_s=grace_s) as worker:
        try:
            status = progress.follow(batch_id, alive=lambda: _check(worker, log))
        except KeyboardInterrupt:
            _stop(batch_id, worker, grace_s)
            return None
        except JobError:
            client.cancel(batch_id)  # nobody shall find it later, and pay
            raise
    log.unlink(missing_ok=True)
    return status


def _log_file(settings: Settings) -> Path:
    folder = settings.data_dir / "logs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"run-{os.getpid()}.log"


def _check(worker: subprocess.Popen[str], log: Path) -> None:
    if worker.poll() is None:
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = visible(lines[-1].removeprefix("llmtasks: ")) if lines else "it said nothing"
    raise JobError(f"the worker ended (exit code {worker.returncode}): {last}; its log: {log}")


def _stop(batch_id: str, worker: subprocess.Popen[str], grace_s: float) -> None:
    """Ask no more; let the calls under way, which are paid for, come to their end."""
    client.cancel(batch_id, running=False)
    _say("stopping; calls under way may end (Ctrl-C again: give them up)")
    try:
        processes.stop(worker, grace_s)
    except KeyboardInterrupt:
        worker.kill()
    client.cancel(batch_id)
    status = client.status(batch_id)
    _say(
        f"stopped: {status.completed:,} of {status.total:,} done, nothing more is asked."
        " To go on run the same command again: what is done is not paid again;"
        f" or: llmtasks retry {batch_id}, with a worker running"
    )


def _report(
    status: BatchStatus, stored: Stored, out: Path | None, form: str, *, as_json: bool
) -> None:
    """The results, then what it took."""
    rows = client.results(batch_id=status.batch_id)
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


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM stops it as Ctrl-C does."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
