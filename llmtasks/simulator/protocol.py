"""What both protocols have in common: the question read from a request, the answer, the face."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from llmtasks.simulator.config import Api
from llmtasks.simulator.quota import Account

#: A caller that sets no limit on the answer gets this one (and OpenAI accounts are charged it).
DEFAULT_MAX_TOKENS: Final = 4096
#: Every message costs a few tokens beside its text.
TOKENS_PER_MESSAGE: Final = 4

Finish = Literal["stop", "length", "refusal", "content_filter"]


class BadRequestError(ValueError):
    """The body is no request of this protocol."""


class Part(msgspec.Struct):
    """One part of a message's content; only text is looked at."""

    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None

    def text(self) -> str:
        """The message's text, its parts joined by line breaks."""
        return joined(self.content)


def joined(content: str | list[Part] | None) -> str:
    """The text of a content that may come in parts."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or ())


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A question. `texts` are those of all messages, instructions first; the last is the prompt.

    `digest` is that of the texts (see below), whatever else was asked.
    """

    api: Api
    model: str
    texts: Sequence[str]
    digest: bytes
    input_tokens: int
    max_tokens: int
    stream: bool = False
    include_usage: bool = True
    schema: Mapping[str, Any] | None = None
    tool: str | None = None

    @property
    def prompt(self) -> str:
        """The last message's text."""
        return self.texts[-1]


def digest(texts: Sequence[str]) -> bytes:
    """SHA-256 of all texts joined by line breaks: the same question has the same digest."""
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).digest()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the simulated model says."""

    text: str
    finish: Finish
    output_tokens: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error answer: its HTTP status, its kind (a key of the protocol's table), its message."""

    status: int
    kind: str
    message: str


class Wire(Protocol):
    """A provider's protocol: its JSON, its headers, its stream. Holds no state."""

    api: Api
    request_id_header: str

    def read(self, body: bytes, chars_per_token: float) -> Ask:
        """The question in a request's body; raises BadRequestError with a line for the caller."""

    def whole(self, ask: Ask, answer: Answer, request_id: str, now: float) -> bytes:
        """The body of an answer that is not streamed."""

    def events(
        self, ask: Ask, answer: Answer, pieces: Sequence[str], request_id: str, now: float
    ) -> Stream:
        """The same answer as the frames of a stream."""

    def error(self, failure: Failure, request_id: str) -> bytes:
        """The body of an error."""

    def limits(self, account: Account, now: float) -> Iterator[tuple[str, str]]:
        """The rate-limit headers."""


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """The frames of a streamed answer: before the first token, one per piece, and the finish."""

    head: bytes
    pieces: Sequence[bytes]
    tail: bytes


def count_tokens(text: str, chars_per_token: float) -> int:
    """A fast and stable estimate: characters / 4 (or as configured), rounded up."""
    return math.ceil(len(text) / chars_per_token)


def input_tokens(texts: Sequence[str], chars_per_token: float) -> int:
    """The tokens of a question: those of every message's text and 4 for the message itself.

    Schemas and tools count nothing.
    """
    return sum(count_tokens(text, chars_per_token) + TOKENS_PER_MESSAGE for text in texts)
