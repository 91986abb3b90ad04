"""How commands take a task type's own options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from llmtasks import submission, task_types
from llmtasks.errors import InvalidOption, UsageError

F = TypeVar("F", bound=Callable[..., Any])

#: Said in another way on the command line.
RESERVED = frozenset({"ids", "task_type", "batch_id", *submission.COMMON_OPTIONS})

task_options: Callable[[F], F] = click.option(
    "-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="A task option."
)
to_option: Callable[[F], F] = click.option(
    "--to", metavar="LANG", help="The same as -o target_language=LANG, for translate."
)

deadline_option: Callable[[F], F] = click.option(
    "--deadline",
    type=click.FloatRange(0, submission.MAX_DEADLINE_S, min_open=True),
    metavar="SECONDS",
    help="Fail what is not done so many seconds after its submission.",
)


def parsed_options(texts: Sequence[str], to: str | None = None) -> dict[str, Any]:
    """The options as given, unchecked; `to` is the target language."""
    options = dict(_option(text) for text in texts)
    if to is not None and options.setdefault("target_language", to) != to:
        raise UsageError("--to and -o target_language say two things; give one of them")
    return options


def checked_options(task_type: str, texts: Sequence[str], to: str | None = None) -> dict[str, Any]:
    """The options as the task type takes them, with its defaults.

    Raises:
        UnknownTaskType, InvalidOption: naming what is allowed.
    """
    options = parsed_options(texts, to)
    known = task_types.get(task_type).options.__struct_fields__
    if "target_language" in known and "target_language" not in options:
        raise InvalidOption(f"{task_type}: say into which language: --to LANG, as in --to es")
    return task_types.validate_options(task_type, options)


def _option(text: str) -> tuple[str, Any]:
    """`key=value`: the value is JSON where it is (50, true, ["person"]), else the text itself."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"-o takes key=value, not {text!r}")
    if key in RESERVED:
        raise UsageError(
            f"-o {key}: is no option of a task, but one of the command; see its --help"
        )
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
