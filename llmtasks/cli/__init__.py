"""The command line: `llmtasks VERB ...`.

Exit codes: 0 all done, 1 some failed, 2 bad usage or configuration. Every command that prints data has
`--json`. Verbs are imported when they are used: `--help` loads none of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from llmtasks import __version__
from llmtasks.errors import ConfigurationError, LLMTasksError, UsageError

#: Exit code of a command that its user ended by a signal, as shells count it.
INTERRUPTED = 130

#: Verb -> the module and command that answer it, in the order of a first use.
VERBS: Mapping[str, tuple[str, str, str]] = {
    "run": ("llmtasks.cli.run", "run", "Everything in one command, over files and folders."),
    "estimate": ("llmtasks.cli.estimate", "estimate", "Calls, tokens and cost; calls nobody."),
    "documents": ("llmtasks.cli.documents", "documents", "Store documents."),
    "submit": ("llmtasks.cli.submit", "submit", "Submit one job per document."),
    "watch": ("llmtasks.cli.watch", "watch", "Follow a batch until it has ended."),
    "status": ("llmtasks.cli.batches", "status", "Where a batch or a job stands."),
    "results": ("llmtasks.cli.batches", "results", "The outputs of a batch."),
    "retry": ("llmtasks.cli.batches", "retry", "Queue failed and cancelled jobs again."),
    "cancel": ("llmtasks.cli.batches", "cancel", "Cancel what has not ended."),
    "providers": ("llmtasks.cli.providers", "providers", "How the providers stand."),
    "doctor": (
        "llmtasks.cli.doctor",
        "doctor",
        "What is configured, what answers, what is missing.",
    ),
    "up": ("llmtasks.cli.up", "up", "Run it all on this machine."),
    "worker": ("llmtasks.cli.worker", "worker", "Run a worker in the foreground."),
    "serve": ("llmtasks.cli.serve", "serve", "Serve the HTTP API in the foreground."),
    "targets": ("llmtasks.cli.targets", "targets", "Where Prometheus finds the workers."),
    "migrate": ("llmtasks.cli.migrate", "migrate", "Bring the database to this version's schema."),
    "maintenance": (
        "llmtasks.cli.maintenance",
        "maintenance",
        "Remove what is older than it is kept.",
    ),
    "simulator": (
        "llmtasks.simulator.command",
        "simulator",
        "A provider over HTTP, for trying out.",
    ),
}


class _Verbs(click.Group):
    """Imports a verb's module when it is called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, command, _ = VERBS[name]
        found: click.Command = getattr(importlib.import_module(module), command)
        return found

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in VERBS.items()])


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llmtasks")
def cli() -> None:
    """Summaries, entities and translations of a mountain of documents."""


def main() -> None:
    """The entry point: errors become one line and an exit code."""
    _require_streams()
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = INTERRUPTED
    except (ConfigurationError, UsageError) as error:
        print(f"llmtasks: {error}", file=sys.stderr)
        code = 2
    except LLMTasksError as error:
        print(f"llmtasks: {type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        code = 1
    except OSError as error:
        print(f"llmtasks: {error.strerror or error}: {error.filename or 'output'}", file=sys.stderr)
        code = 1
        _forget_output()
    sys.exit(code if isinstance(code, int) else 0)


def _require_streams() -> None:
    """Python has no stream where its caller closed one; what is said there is said to nobody."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nobody = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the end
            setattr(sys, name, nobody)


def _forget_output() -> None:
    """What could not be written is not tried once more at the interpreter's end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
