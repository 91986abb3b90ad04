"""The composition root: `celery -A workers.app worker`, and `celery -A workers.app flower`.

Importing wires Celery's signals and nothing else; what a worker owns starts with the worker.
"""

from __future__ import annotations

import os
import sys

from llmtasks.celery_app import app
from llmtasks.errors import ConfigurationError
from llmtasks.settings import current
from llmtasks.tasks import process_document
from workers import lifecycle

__all__ = ["app", "process_document"]

lifecycle.connect()


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
    if flower.password:
        os.environ.setdefault("FLOWER_BASIC_AUTH", f"{flower.user}:{flower.password}")


if "flower" in sys.argv[1:]:
    _configure_flower()
