"""What running needs beyond valid settings: providers with their keys, known task types, whole prompts, the
user's functions, and limits that one request fits into. Starts nothing and calls nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from llmtasks import hooks, planning, task_types, wording
from llmtasks.admission import Claim, limits
from llmtasks.errors import ConfigurationError, DocumentTooLarge, InvalidOption
from llmtasks.messages import Request
from llmtasks.settings import (
    Origin,
    Provider,
    Settings,
    api_key,
    current_origin,
    require_providers,
)

#: No document is smaller.
_ONE_WORD = task_types.Document("one-word", "word")

#: What a request has to fit into, as the settings call it.
_LIMITS = (
    "context_window",
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a worker has, once nothing is missing: the providers' keys by name, and the user's functions."""

    keys: Mapping[str, str | None] = field(repr=False)
    hooks: hooks.Hooks


def ready(settings: Settings, found: Origin | None = None) -> Ready:
    """Check everything that a worker needs, and give what it needs of that.

    Raises:
        ConfigurationError: one line that names where it stands, the key, what is wrong, and what to do.
    """
    found = found or current_origin()
    _check_task_types(settings, found)
    keys = _keys(settings, found)
    _check_prompts(settings, found)
    functions = _hooks(settings, found)
    _check_rooms(settings, found)
    return Ready(keys=keys, hooks=functions)


def askable(settings: Settings, found: Origin | None = None) -> None:
    """Check that there are questions and somebody to put them to; nobody is called, so no key is needed.

    Raises:
        ConfigurationError: as `ready`.
    """
    found = found or current_origin()
    _check_task_types(settings, found)
    require_providers(settings, found)
    _check_prompts(settings, found)
    _check_rooms(settings, found)


def _hooks(settings: Settings, found: Origin) -> hooks.Hooks:
    """The user's functions that the settings name, from beside the settings' file too."""
    places = [] if found.path is None else [found.path.parent]
    try:
        return hooks.load(settings, *places, Path.cwd())
    except ConfigurationError as error:
        raise found.located(error) from None


def _keys(settings: Settings, found: Origin) -> dict[str, str | None]:
    require_providers(settings, found)
    try:
        return {provider.name: api_key(provider) for provider in settings.providers}
    except ConfigurationError as error:
        raise found.located(error) from None


def _check_task_types(settings: Settings, found: Origin) -> None:
    known = task_types.names()
    for name in settings.tasks:
        if name not in known:
            hint = wording.did_you_mean(name, known) or ";"
            raise found.error(
                f"tasks.{name}", f"is no task type{hint} there are: {', '.join(known)}"
            )


def _check_prompts(settings: Settings, found: Origin) -> None:
    kinds = {name: task_types.get(name) for name in task_types.names()}
    if settings.prompts.dir is not None:
        folder = Path(settings.prompts.dir).expanduser()
        if not folder.is_dir():
            raise found.error("prompts.dir", f"there is no directory {folder}")
        files = [kind.prompt_file.name for kind in kinds.values()]
        for path in sorted(folder.glob("*.prompt.md")):
            if path.name not in files:
                hint = wording.did_you_mean(path.name, files) or ";"
                raise found.error(
                    "prompts.dir",
                    f"{path} is the prompt of no task type{hint} there are: {', '.join(files)}",
                )
    for kind in kinds.values():
        task_types.load_prompt(kind, settings.prompts.dir)


# --- room for one request -------------------------------------------------------------------------------


def _check_rooms(settings: Settings, found: Origin) -> None:
    for name in task_types.names():
        _check_room(settings, name, found)


def _check_room(settings: Settings, task_type: str, found: Origin) -> None:
    """Every provider of a task type must be able to take its smallest request."""
    limited = any(
        getattr(provider, key) for provider in settings.providers_for(task_type) for key in _LIMITS
    )
    plan = _smallest(settings, task_type) if limited else None
    if plan is None:
        return
    request = plan.request(_ONE_WORD)
    if not _misfits(plan, request, _most_input_tokens(request)):
        return
    # As the jobs will claim it: the greatest count among the models.
    input_tokens = max(plan.input_tokens(request).values())
    own = replace(request, max_output_tokens=plan.kind.max_output_tokens(_ONE_WORD, plan.options))
    for provider, key in _misfits(plan, request, input_tokens):
        if (provider, key) not in _misfits(plan, own, input_tokens):
            raise found.error(
                f"tasks.{task_type}.max_output_tokens",
                f"{request.max_output_tokens} is more than providers.{provider.name}.{key} ="
                f" {getattr(provider, key):g} has room for: the smallest question takes"
                f" {input_tokens} tokens of input; lower it, or name other providers in"
                f" tasks.{task_type}.providers",
            )
        raise found.error(
            f"providers.{provider.name}.{key}",
            f"{getattr(provider, key):g} is too small for {task_type}: its smallest request needs"
            f" {_needed(key, input_tokens, request.max_output_tokens)} tokens; raise it, or name"
            f" other providers in tasks.{task_type}.providers",
        )


def _smallest(settings: Settings, task_type: str) -> planning.Plan | None:
    """A job with the default options; None where an option is required that we cannot think of."""
    struct = task_types.get(task_type).options
    options = {one.name: "en" for one in msgspec.structs.fields(struct) if one.required}
    try:
        return planning.plan(settings, task_type, options)
    except InvalidOption:
        return None


def _misfits(
    plan: planning.Plan, request: Request, input_tokens: int
) -> list[tuple[Provider, str]]:
    """The limits that the request can never fit into, by admission's own rule."""
    claim = Claim(
        attempt_id="",
        waiter="",
        key=None,
        input_tokens=input_tokens,
        output_tokens=request.max_output_tokens,
        providers=(),
    )
    return [
        (provider, key)
        for provider in plan.providers
        for key in _LIMITS
        if not _fits(_with_only(provider, key), claim)
    ]


def _fits(provider: Provider, claim: Claim) -> bool:
    try:
        return bool(limits.fitting([provider], claim))
    except DocumentTooLarge:
        return False


def _with_only(provider: Provider, key: str) -> Provider:
    """The provider without its other limits."""
    return msgspec.structs.replace(provider, **{one: None for one in _LIMITS if one != key})


def _most_input_tokens(request: Request) -> int:
    """More than any count gives: two for each byte, and what the chat form adds. Counting well needs a
    vocabulary, which takes a third of a second to load.
    """
    schema = json.dumps(request.output_schema) if request.output_schema else ""
    return 2 * len(f"{request.system}{request.prompt}{schema}".encode()) + 100


def _needed(key: str, input_tokens: int, output_tokens: int) -> int:
    if key.startswith("input"):
        return input_tokens
    return output_tokens if key.startswith("output") else input_tokens + output_tokens
