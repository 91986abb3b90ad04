"""The task types: three of our own, and those that installed packages add.

A package adds one by an entry point of the group `llmtasks.task_types` whose name is the task type's
and whose object is a subclass of `TaskType`:

    [project.entry-points."llmtasks.task_types"]
    classify = "my_package.classify:Classify"

What such a module needs is importable from here; `docs/examples/classify` is a whole package.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
import typing
import unicodedata
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import msgspec

from llmtasks.errors import ConfigurationError, InvalidOption, OutputInvalid, UnknownTaskType
from llmtasks.task_types.base import (
    LONGEST_ANSWER,
    Document,
    Options,
    Prompt,
    TaskContext,
    TaskType,
    decode,
    load_prompt,
    strict_schema,
)

__all__ = [
    "LONGEST_ANSWER",
    "Document",
    "Options",
    "OutputInvalid",
    "Prompt",
    "TaskContext",
    "TaskType",
    "decode",
    "get",
    "load_prompt",
    "names",
    "parse_options",
    "queue",
    "queue_name",
    "strict_schema",
    "validate_options",
]

ENTRY_POINTS = "llmtasks.task_types"

_BUILT_IN = {
    "summarize": "llmtasks.task_types.summarize:Summarize",
    "extract": "llmtasks.task_types.extract:Extract",
    "translate": "llmtasks.task_types.translate:Translate",
}
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


def names() -> tuple[str, ...]:
    """Every known task type: ours first, then the added ones by name."""
    return tuple(_loaders())


@functools.cache
def get(name: str) -> TaskType[Any]:
    """The task type of this name.

    Raises:
        UnknownTaskType: lists the known ones.
        ConfigurationError: an installed package's task type cannot be loaded.
    """
    loaders = _loaders()
    if name not in loaders:
        near = difflib.get_close_matches(name.lower(), loaders, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UnknownTaskType(
            f"there is no task type {name[:60]!r}{hint} Known: {', '.join(loaders)}"
        )
    return loaders[name]()


def queue(name: str) -> str:
    """The Celery queue of a task type.

    Raises:
        UnknownTaskType: lists the known ones.
    """
    if name not in _loaders():
        get(name)
    return queue_name(name)


def queue_name(name: str) -> str:
    """The same, also of a task type that is not installed here."""
    return f"llm.{name}"


def parse_options(task_type: str, options: Mapping[str, Any]) -> Options:
    """The options as the task type's struct, checked, normalised and with defaults.

    Text is accepted where a number or a list (`a,b`) is meant, as it comes from a command line.

    Raises:
        UnknownTaskType: lists the known ones.
        InvalidOption: names the option and what is allowed.
    """
    struct: type[Options] = get(task_type).options
    try:
        given = {str(key): _normalised(value) for key, value in options.items()}
    except RecursionError:
        raise InvalidOption(f"{task_type}: an option is nested too deeply") from None
    for unknown in given.keys() - set(struct.__struct_fields__):
        near = difflib.get_close_matches(unknown, struct.__struct_fields__, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InvalidOption(
            f"{task_type}: {unknown[:60]}: is no option{hint}"
            f" Options are: {', '.join(struct.__struct_fields__) or 'none'}"
        )
    for key in _list_fields(struct) & given.keys():
        if isinstance(given[key], str):
            given[key] = [part.strip() for part in given[key].split(",") if part.strip()]
    try:
        return msgspec.convert(given, struct, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidOption(f"{task_type}: {_explain(error, struct)}") from None


def validate_options(task_type: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`parse_options` as a plain JSON-able dict: what is stored with the job."""
    parsed = parse_options(task_type, options)
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(parsed))
    return plain


def _normalised(value: Any) -> Any:
    """Text in one Unicode form, so that the same option is the same question."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value.strip())
    if isinstance(value, list | tuple):
        return [_normalised(one) for one in value]
    return value


@functools.cache
def _list_fields(struct: type[Options]) -> frozenset[str]:
    hints = typing.get_type_hints(struct)
    return frozenset(
        name for name, hint in hints.items() if typing.get_origin(hint) in (list, tuple)
    )


def _explain(error: msgspec.ValidationError, struct: type[Options]) -> str:
    """`Expected `int` >= 10 - at `$.max_words`` becomes `max_words: expected int >= 10`."""
    what, _, at = str(error).partition(" - at `$.")
    missing = re.search(r"missing required field `([^`]+)`", what)
    if missing:
        return f"{missing[1]}: is required"
    key = at.rstrip("`").partition("[")[0]
    if what.startswith("Invalid enum value"):
        return f"{key}: expected one of {', '.join(_choices(struct, key))}"
    what = what.replace("`", "").replace("null", "none")
    return f"{key}: {what[:1].lower() + what[1:]}" if key else what


def _choices(struct: type[Options], key: str) -> list[str]:
    """The values of a `Literal` option, also of an optional one."""
    hint = typing.get_type_hints(struct)[key]
    literals = [hint, *typing.get_args(hint)]
    return [
        str(value)
        for one in literals
        if typing.get_origin(one) is typing.Literal
        for value in typing.get_args(one)
    ]


@functools.cache
def _loaders() -> Mapping[str, Callable[[], TaskType[Any]]]:
    """Name -> how to get it. Nothing is imported yet."""
    loaders: dict[str, Callable[[], TaskType[Any]]] = {
        name: functools.partial(_built_in, path) for name, path in _BUILT_IN.items()
    }
    owners = dict.fromkeys(_BUILT_IN, "llmtasks itself")
    found = sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda one: one.name)
    for entry in found:
        source = _distribution(entry)
        if not _NAME.fullmatch(entry.name):
            raise ConfigurationError(
                f"{source}: the task type name {entry.name!r} is not allowed: lower-case letters,"
                " digits, _ and -, at most 40"
            )
        if entry.name in loaders:
            raise ConfigurationError(
                f"{source}: the task type {entry.name} exists already, in {owners[entry.name]};"
                " uninstall one of the two, or rename one"
            )
        owners[entry.name] = source
        loaders[entry.name] = functools.partial(_added, entry)
    return loaders


def _built_in(path: str) -> TaskType[Any]:
    module, _, name = path.partition(":")
    task_type: TaskType[Any] = getattr(importlib.import_module(module), name)()
    return task_type


def _added(entry: metadata.EntryPoint) -> TaskType[Any]:
    source = _distribution(entry)
    try:
        task_type = entry.load()()
    except Exception as error:  # foreign code may raise anything
        raise ConfigurationError(
            f"{source}: the task type {entry.name} cannot be loaded from {entry.value}:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not isinstance(task_type, TaskType):
        raise ConfigurationError(
            f"{source}: the task type {entry.name}: {entry.value} is no subclass of TaskType"
        )
    for attribute in ("name", "options"):
        if not hasattr(task_type, attribute):
            raise ConfigurationError(
                f"{source}: the task type {entry.name}: {entry.value} has no `{attribute}`"
            )
    if task_type.name != entry.name:
        raise ConfigurationError(
            f"{source}: the task type {entry.name} calls itself {task_type.name!r}"
        )
    return task_type


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"package {entry.dist.name}" if entry.dist else "an installed package"
