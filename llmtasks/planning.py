"""What the jobs of one task type and one set of options ask, and whom: for the worker that runs them, and
for the estimate of what they will cost.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from llmtasks import task_types
from llmtasks.errors import ConfigurationError, InvalidOption
from llmtasks.jobs import REFUSED_OPTION
from llmtasks.messages import Request
from llmtasks.settings import Provider, Settings, Task
from llmtasks.task_types.base import load_prompt
from llmtasks.text.keys import Model, answer_key
from llmtasks.text.tokens import encoding_of, request_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The same for every document. `providers` are all that may answer."""

    task_type: str
    kind: task_types.TaskType[Any]
    options: task_types.Options
    prompt: task_types.Prompt
    task: Task
    providers: tuple[Provider, ...]
    shared: bool

    @property
    def temperature(self) -> float:
        """The sampling temperature of the settings."""
        return self.task.temperature

    @property
    def max_output_tokens(self) -> int | None:
        """The answer limit of the settings in tokens; None: the task type's own estimate."""
        return self.task.max_output_tokens

    @property
    def models(self) -> list[Model]:
        """What may answer, as the keys name it."""
        return [(p.kind, p.model, p.base_url) for p in self.providers]

    @property
    def exact(self) -> bool:
        """Whether a question's tokens are counted, not estimated: all models have one known vocabulary."""
        return is_exact(self.providers)

    def answer_key(self, tenant: str, content_hash: str) -> str | None:
        """The name of the whole question about a document; None where answers are not to be shared."""
        if not self.shared:
            return None
        return answer_key(
            tenant=tenant,
            task_type=self.task_type,
            options=msgspec.to_builtins(self.options),
            document_hash=content_hash,
            prompt_sha256=self.prompt.sha256,
            models=self.models,
            temperature=self.temperature,
            max_output_tokens=self.max_output_tokens,
            schema=self.kind.output_schema(self.options),
        )

    def request(self, document: task_types.Document) -> Request:
        """The first question about a document.

        Raises:
            DocumentTooLarge: its answer would not fit into one piece.
        """
        return self.kind.request(document, self.options, self)

    def input_tokens(self, request: Request) -> Mapping[str, int]:
        """Tokens of a question by provider; models of one vocabulary count once."""
        return input_tokens(self.providers, request)


def is_exact(providers: Sequence[Provider]) -> bool:
    """Whether a question's tokens are counted, not estimated: all models have one known vocabulary."""
    encodings = {encoding_of(provider.model) for provider in providers}
    return len(encodings) == 1 and None not in encodings


def input_tokens(providers: Sequence[Provider], request: Request) -> Mapping[str, int]:
    """Tokens of a question by provider; models of one vocabulary count once."""
    by_encoding: dict[str | None, int] = {}
    for provider in providers:
        encoding = encoding_of(provider.model)
        if encoding not in by_encoding:
            by_encoding[encoding] = request_tokens(request, provider.model)
    return {p.name: by_encoding[encoding_of(p.model)] for p in providers}


def plan(settings: Settings, task_type: str, options: Mapping[str, Any]) -> Plan:
    """What jobs with these options ask.

    Raises:
        UnknownTaskType, InvalidOption: naming what is allowed.
        ConfigurationError: no provider may serve the task type, or its prompt is broken.
    """
    kind = task_types.get(task_type)
    if REFUSED_OPTION in options:
        raise InvalidOption(str(options[REFUSED_OPTION]))
    parsed = task_types.parse_options(task_type, options)
    providers = settings.providers_for(task_type)
    if not providers:
        raise ConfigurationError(f"no provider is configured for {task_type}")
    task = settings.task(task_type)
    return Plan(
        task_type=task_type,
        kind=kind,
        options=parsed,
        prompt=_prompt(task_type, settings.prompts.dir),
        task=task,
        providers=providers,
        shared=settings.is_shared(task.temperature),
    )


@functools.cache
def _prompt(task_type: str, directory: str | None) -> task_types.Prompt:
    """Read once per process: a changed prompt file is another deployment."""
    return load_prompt(task_types.get(task_type), directory)
