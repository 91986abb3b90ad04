"""What is said to a model and what comes back. Values only; tokens are the provider's own count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FinishReason(StrEnum):
    """Why the model stopped, in one vocabulary for all providers."""

    STOP = "stop"  # the answer is whole
    LENGTH = "length"  # cut by max_output_tokens or the context window
    REFUSAL = "refusal"  # the model or a content filter declined


class Role(StrEnum):
    """Who said something in a conversation."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation said."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to a model.

    `system` holds the instructions, `prompt` the delimited document, or what was said last in a
    conversation whose earlier turns are the `history`; `max_output_tokens` bounds the answer; with
    `output_schema` (a JSON Schema object, named `schema_name`) the answer must be JSON of it.
    """

    system: str
    prompt: str
    max_output_tokens: int
    temperature: float = 0.0
    history: tuple[Turn, ...] = ()
    output_schema: Mapping[str, Any] | None = None
    schema_name: str = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call, or summed over several. `cached_input_tokens` is a part of `input_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedLimits:
    """What a provider says of the limits it enforces, per minute. None: it says nothing of that one."""

    requests: float | None = None
    tokens: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One model answer. `latency_s` is in seconds; `request_id` is the provider's, for its support.

    `usage` is None when the provider did not count the tokens: unknown, not zero. `first_text_s` are the
    seconds until a streamed answer began. `limits` came with this very answer and are not kept with it.
    """

    text: str
    finish_reason: FinishReason
    provider: str
    model: str
    usage: Usage | None
    latency_s: float = 0.0
    request_id: str | None = None
    first_text_s: float | None = None
    limits: StatedLimits | None = None
