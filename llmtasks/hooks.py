"""The user's own functions: where texts come from, and where results go.

Both are named in the settings as `package.module:function`, loaded once per worker process before it takes
a job, and called on threads: a coroutine or a generator would be accepted and never run, so it is refused.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from llmtasks import logs
from llmtasks.errors import (
    ConfigurationError,
    DocumentNotFound,
    DocumentSourceFailed,
    LLMTasksError,
    StoreUnavailable,
)
from llmtasks.settings import Settings

_NO_PLAIN_FUNCTION: Mapping[Callable[[object], bool], str] = {
    inspect.iscoroutinefunction: "is async",
    inspect.isasyncgenfunction: "is an async generator",
    inspect.isgeneratorfunction: "is a generator",
}


@dataclass(frozen=True, slots=True)
class Source:
    """The user's document store."""

    name: str
    _fetch: Callable[[str, str], object]

    def __call__(self, document_id: str, tenant: str) -> str | bytes:
        """What the function gives for this document.

        Raises:
            DocumentNotFound: it gave None.
            DocumentSourceFailed: it raised anything at all (a cancelled asyncio task is no Exception), or
                gave something else; never with its message, which may quote the document.
            LLMTasksError: what it raised, where that is one of ours.
        """
        try:
            found = self._fetch(document_id, tenant)
        except BaseException as error:
            # Of its own tables, perhaps: ours are there, and the job has to end.
            if isinstance(error, LLMTasksError) and not isinstance(error, StoreUnavailable):
                raise
            raise DocumentSourceFailed(f"{self.name} raised {type(error).__name__}") from error
        if found is None:
            raise DocumentNotFound(f"there is no document {document_id!r}")
        if not isinstance(found, str | bytes):
            raise DocumentSourceFailed(
                f"{self.name} returned {type(found).__name__}, not str, bytes or None"
            )
        return found


@dataclass(frozen=True, slots=True)
class Sink:
    """Where the user wants ended jobs."""

    name: str
    _give: Callable[[Mapping[str, Any]], object]

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Give it one ended job. Whatever the function raises is raised, and may be a BaseException."""
        self._give(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The functions of these settings; None where none is named."""

    source: Source | None = None
    sink: Sink | None = None


def load(settings: Settings, *places: Path) -> Hooks:
    """Import the functions that the settings name.

    `places` are searched after everything that is installed: a script of a package does not have its
    working directory on the path.

    Raises:
        ConfigurationError: naming the key, what is wrong with the function, and what to do.
    """
    source, sink = settings.documents.source, settings.results.sink
    if source or sink:
        _search(places)
    return Hooks(
        source=None if source is None else Source(source, _source(source)),
        sink=None if sink is None else Sink(sink, _sink(sink)),
    )


def _search(places: tuple[Path, ...]) -> None:
    # Behind the installed packages: a folder of the user's must not hide one of them, or of ours.
    sys.path.extend(new for place in places if (new := str(place.absolute())) not in sys.path)


@dataclass(frozen=True, slots=True)
class _Named:
    """A function that the settings name, and how its faults are told."""

    key: str
    name: str

    def error(self, says: str) -> ConfigurationError:
        return ConfigurationError(f"{self.name}: {says}", key=self.key)


def _source(name: str) -> Callable[[str, str], object]:
    named = _Named("documents.source", name)
    function = _function(named)
    if _takes(function, named, "document", tenant="tenant"):
        return lambda document_id, tenant: function(document_id, tenant=tenant)
    if _takes(function, named, "document"):
        return lambda document_id, _tenant: function(document_id)
    raise named.error(
        "must take (document_id), or (document_id, *, tenant), and nothing else it needs"
    )


def _sink(name: str) -> Callable[[Mapping[str, Any]], object]:
    named = _Named("results.sink", name)
    function = _function(named)
    if not _takes(function, named, {}):
        raise named.error("must take (row), a dict, and nothing else it needs")
    return function


def _function(named: _Named) -> Callable[..., object]:
    module_name, _, attribute = named.name.partition(":")
    module = _module(named, module_name)
    if not hasattr(module, attribute):
        place = getattr(module, "__file__", None) or "a namespace package"
        raise named.error(f"{module_name} ({place}) has no {attribute}")
    function: Callable[..., object] = getattr(module, attribute)
    if inspect.isclass(function) or not callable(function):
        raise named.error(f"is a {_kind(function)}, not a function")
    for is_it, what in _NO_PLAIN_FUNCTION.items():
        if is_it(function) or is_it(type(function).__call__):
            raise named.error(
                f"{what}; name a plain function (one that calls asyncio.run(...) will do)"
            )
    return function


def _module(named: _Named, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise named.error(
                f"importing {module_name} failed: it needs the module {error.name}; install it"
            ) from None
        raise named.error(
            f"there is no module {error.name}; put it beside llmtasks.toml or into the directory the"
            " worker is started in, or install it"
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # on the main thread: Ctrl-C goes on
        raise named.error(
            f"importing {module_name} failed: {type(error).__name__} at {logs.place(error)}"
        ) from None


def _takes(function: Callable[..., object], named: _Named, *args: object, **kwargs: object) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except ValueError:
        raise named.error("does not say what it takes; wrap it in a function of your own") from None
    except TypeError:
        return False
    return True


def _kind(value: object) -> str:
    return "class" if inspect.isclass(value) else type(value).__name__
