"""The composition root: `celery -A workers.app worker`, and `celery -A workers.app flower`.

Importing wires Celery's signals and nothing else; what a worker owns starts with the worker.
"""

from __future__ import annotations

import os
import sys

from llmtasks.celery_app import app
from llmtasks.errors import ConfigurationError
from llmtasks.settings import LOOPBACK, current
from llmtasks.tasks import process_document
from workers import lifecycle

__all__ = ["app", "process_document"]

lifecycle.connect()

#: What Flower shows of a task: whose document, how it stands, how far it is or what it cost, why it waits.
_COLUMNS = "uuid,state,args,kwargs,result,exception,received,runtime,worker"


def _configure_flower() -> None:
    """Give Flower what the settings say, by the only way its own command reads defaults: its environment.

    Loopback unless told otherwise; a password from the settings becomes its basic auth.
    """
    try:
        flower = current().flower
    except ConfigurationError as error:
        print(f"llmtasks: {error}", file=sys.stderr)  # noqa: T201  # before any logging exists
        raise SystemExit(2) from None
    os.environ.setdefault("FLOWER_ADDRESS", flower.host)
    os.environ.setdefault("FLOWER_PORT", str(flower.port))
    os.environ.setdefault("FLOWER_TASKS_COLUMNS", _COLUMNS)
    if flower.password:
        os.environ.setdefault("FLOWER_BASIC_AUTH", f"{flower.user}:{flower.password}")
    _refuse_an_open_flower()


def _refuse_an_open_flower() -> None:
    """End where Flower's own options or variables, which win over ours, open it to everybody."""
    given = {**_flower_variables(), **_flower_options()}
    if given["address"] in LOOPBACK or given.keys() & {"basic-auth", "auth"}:
        return
    print(  # noqa: T201  # before any logging exists
        f"llmtasks: flower.password: is required when Flower listens on {given['address']}; set"
        " LLMTASKS_FLOWER__PASSWORD",
        file=sys.stderr,
    )
    raise SystemExit(2)


def _flower_variables() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name.startswith("FLOWER_")}
    return {_option(name.removeprefix("FLOWER_")): value for name, value in found.items() if value}


def _flower_options() -> dict[str, str]:
    pairs = [one.lstrip("-").partition("=") for one in sys.argv if one.startswith("--")]
    return {_option(name): value for name, _, value in pairs}


def _option(name: str) -> str:
    """Flower takes its options with either sign between their words."""
    return name.lower().replace("_", "-")


if "flower" in sys.argv[1:]:
    _configure_flower()
