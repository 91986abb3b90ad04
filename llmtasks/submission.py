"""What a producer's call says of a job, checked: the same for a task, a batch and a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llmtasks import task_types
from llmtasks.errors import InvalidOption
from llmtasks.jobs import MAX_PRIORITY, json_size
from llmtasks.settings import current
from llmtasks.store.names import MAX_TENANT

#: What every task takes besides its type's own options, with the default.
COMMON_OPTIONS: Mapping[str, Any] = {
    "tenant": "default",
    "priority": 0,
    "fresh": False,
    "stream": False,
    "deadline_s": None,
}

#: Bytes that a job's options may have as JSON: each row of a batch holds them.
MAX_OPTIONS_BYTES = 65_536

#: Characters of an option that others are shown, and words in the names of those that nobody is.
_MOST_SHOWN = 40
_SECRET = ("key", "password", "secret", "token", "credential")

#: Seconds of the longest deadline: a year.
MAX_DEADLINE_S = 31_536_000


class Options(Protocol):
    """What a job's message says besides its document and task type."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The task type's own."""

    @property
    def tenant(self) -> str:
        """Whose document it is."""

    @property
    def priority(self) -> int:
        """0 to 9, 9 first."""

    @property
    def fresh(self) -> bool:
        """Ask again."""

    @property
    def stream(self) -> bool:
        """Show the answer while it is written."""

    @property
    def deadline_s(self) -> float | None:
        """Seconds it may take."""


def checked(
    task_type: str, given: Mapping[str, Any], priority: int | None = None
) -> dict[str, Any]:
    """A caller's options as fields of a job: the common ones, and the task type's own as `options`.

    Args:
        task_type: Whose they are.
        given: Common and own ones together.
        priority: Goes before the one that is given.

    Raises:
        UnknownTaskType, InvalidOption: naming what is allowed.
    """
    own = dict(given)
    common = {name: own.pop(name, default) for name, default in COMMON_OPTIONS.items()}
    if priority is not None:
        common["priority"] = priority
    _check_common(common)
    common["deadline_s"] = deadline(common["deadline_s"])
    valid = task_types.validate_options(task_type, own)
    check_size(valid)
    return {**common, "options": valid}


def deadline(given: object) -> float | None:
    """The seconds that a job may take; where it says nothing, what the settings say.

    Raises:
        InvalidOption: it is no such number.
    """
    if given is None:
        return current().delivery.deadline_s
    seconds = given if isinstance(given, int | float) and not isinstance(given, bool) else 0
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise InvalidOption(
            "deadline_s must be a number of seconds greater than 0,"
            f" and at most {MAX_DEADLINE_S} (a year)"
        )
    return float(seconds)


def check_size(given: Mapping[str, Any], *, what: str = "options", most: int | None = None) -> None:
    """Refuse what is no JSON, or more than `most` bytes of it; None: as much as options may have.

    Raises:
        InvalidOption: says how much it is, and how much may be.
    """
    try:
        size, most = json_size(given), MAX_OPTIONS_BYTES if most is None else most
    except (ValueError, TypeError, RecursionError):
        raise InvalidOption(f"the {what} must be plain values, lists and objects of JSON") from None
    if size > most:
        raise InvalidOption(f"the {what} have {size:,} bytes as JSON; at most {most:,} are allowed")


def message_options(job: Options) -> dict[str, Any]:
    """The keyword arguments of a job's message: its options, and the common ones that differ."""
    common = {name: getattr(job, name) for name in COMMON_OPTIONS}
    return {
        **job.options,
        **{name: value for name, value in common.items() if value != COMMON_OPTIONS[name]},
    }


def shown(options: Mapping[str, Any]) -> str:
    """A message's options for those who watch, as Flower: short words and numbers are shown, of the rest how
    much it is. A glossary may be a document, and an option of your own a secret.
    """
    given = ((name, value) for name, value in options.items() if value is not None)
    return "{" + ", ".join(f"{name!r}: {_shown(name, value)}" for name, value in given) + "}"


def _shown(name: str, value: object) -> str:
    if any(word in name.lower() for word in _SECRET):
        return "***"
    match value:
        case bool() | int() | float():
            return repr(value)
        case str() if len(value) <= _MOST_SHOWN:
            return repr(value)
        case str():
            return f"<{len(value):,} characters>"
        case list() | tuple() | dict():
            return f"<{type(value).__name__} of {len(value):,}>"
    return "<...>"


def _check_common(common: Mapping[str, Any]) -> None:
    priority, tenant = common["priority"], common["tenant"]
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidOption(f"priority must be a number from 0 to {MAX_PRIORITY}")
    if not 0 <= priority <= MAX_PRIORITY:
        raise InvalidOption(f"priority must be from 0 to {MAX_PRIORITY}, not {priority}")
    if not isinstance(tenant, str) or not 0 < len(tenant) <= MAX_TENANT:
        raise InvalidOption(f"tenant must be a text of 1 to {MAX_TENANT} characters")
    for name in ("fresh", "stream"):
        if not isinstance(common[name], bool):
            raise InvalidOption(f"{name} must be true or false")
