"""What a producer's call says of a job, checked: the same for a task, a batch and a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llmtasks import task_types
from llmtasks.errors import InvalidOption
from llmtasks.jobs import MAX_PRIORITY
from llmtasks.store.names import MAX_TENANT

#: What every task takes besides its type's own options, with the default.
COMMON_OPTIONS: Mapping[str, Any] = {"tenant": "default", "priority": 0, "fresh": False}


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
    return {**common, "options": task_types.validate_options(task_type, own)}


def message_options(job: Options) -> dict[str, Any]:
    """The keyword arguments of a job's message: its options, and the common ones that differ."""
    common = {"tenant": job.tenant, "priority": job.priority, "fresh": job.fresh}
    return {
        **job.options,
        **{name: value for name, value in common.items() if value != COMMON_OPTIONS[name]},
    }


def _check_common(common: Mapping[str, Any]) -> None:
    priority, tenant = common["priority"], common["tenant"]
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidOption(f"priority must be a number from 0 to {MAX_PRIORITY}")
    if not 0 <= priority <= MAX_PRIORITY:
        raise InvalidOption(f"priority must be from 0 to {MAX_PRIORITY}, not {priority}")
    if not isinstance(tenant, str) or not 0 < len(tenant) <= MAX_TENANT:
        raise InvalidOption(f"tenant must be a text of 1 to {MAX_TENANT} characters")
    if not isinstance(common["fresh"], bool):
        raise InvalidOption("fresh must be true or false")
