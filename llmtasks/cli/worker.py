"""`llmtasks worker`: one worker process in the foreground."""

from __future__ import annotations

import os
import warnings

import click

from llmtasks import task_types
from llmtasks.errors import UsageError
from llmtasks.settings import current


@click.command()
@click.option(
    "--concurrency", type=click.IntRange(1), help="Jobs at once; default from the settings."
)
@click.option("--queues", help="Task types or queues, separated by commas; default all.")
@click.option("--name", help="The node's name in Flower; default from the process id.")
def worker(concurrency: int | None, queues: str | None, name: str | None) -> None:
    """Run a worker in the foreground.

    SIGTERM (or Ctrl-C) drains: waiting jobs go back at once, model calls in flight have
    `[worker] drain_s` seconds to end. A worker that is killed loses nothing: its lease runs out and
    another one takes its jobs.
    """
    chosen = _queues(queues)
    from workers.app import app

    # Celery warns root of pickles in messages; here messages are JSON and nothing else is accepted.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser")
    # It says at each lost connection how a coming version of it will treat running tasks; here rows decide.
    warnings.filterwarnings("ignore", category=PendingDeprecationWarning)
    app.worker_main(
        [
            "--quiet",  # no banner: our own lines say what runs
            "worker",
            "--pool=threads",
            f"--concurrency={concurrency or current().worker.concurrency}",
            f"--queues={','.join(chosen)}",
            f"--hostname={name or f'llmtasks-{os.getpid()}'}@%h",
            "--loglevel=WARNING",  # ours say what matters; Celery's are for its own troubles
            # Neither clock nor state is shared between workers through the broker.
            "--without-gossip",
            "--without-mingle",
        ]
    )


def _queues(text: str | None) -> list[str]:
    """Queue names from `a,b`: `summarize` and `llm.summarize` mean the same."""
    known = {name: task_types.queue(name) for name in task_types.names()}
    if text is None:
        return list(known.values())
    chosen = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name = part.removeprefix("llm.")
        if name not in known:
            raise UsageError(
                f"--queues: no task type is named {name!r}; there are: {', '.join(known)}"
            )
        chosen.append(known[name])
    if not chosen:
        raise UsageError("--queues: names no queue")
    return chosen
