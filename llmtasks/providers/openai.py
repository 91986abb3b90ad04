"""Chat completions: OpenAI itself; with a `base_url` vLLM, llama.cpp and all that speak it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

import msgspec
import openai
from msgspec import Meta

from llmtasks import settings
from llmtasks.messages import FinishReason, Request, Usage
from llmtasks.providers import sdk
from llmtasks.providers.base import OFFICIAL_URLS
from llmtasks.providers.failures import BrokenOffError, UnreadableAnswerError
from llmtasks.providers.sdk import Answer, Reader, SDKProvider, decode, finish, whole

FINISH_REASONS: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.REFUSAL,
}

#: o1, o3-mini, gpt-5, gpt-5.1-mini, openai/gpt-6 ...; not gpt-4.1, gpt-oss, or Azure's gpt-35.
_REASONING = re.compile(r"(?:^|/)(?:o\d|gpt-(?!35)(?:[5-9]|\d\d))", re.ASCII)


#: What a server left out, or said nothing in.
_NULL: Final = msgspec.Raw(b"null")


class OpenAIProvider(SDKProvider):
    """A provider that speaks OpenAI's chat completions."""

    _path: ClassVar[str] = "/chat/completions"
    _streamed: ClassVar[Mapping[str, Any]] = {
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    def __init__(self, provider: settings.Provider, api_key: str | None) -> None:
        client = openai.AsyncOpenAI(
            api_key=sdk.usable_key(provider, api_key),
            base_url=provider.base_url or OFFICIAL_URLS["openai"],
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(**sdk.http_options(provider)),
            # Else taken from the environment, and sent to whatever server this is.
            default_headers=_without("OpenAI-Organization", "OpenAI-Project"),
        )
        sdk.never_log_bodies("openai")
        super().__init__(provider, api_key, client)
        self._takes_temperature = not _REASONING.search(provider.model)
        self._limit_field = limit_field(provider.base_url, provider.model)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                *([{"role": "system", "content": request.system}] if request.system else []),
                *({"role": turn.role, "content": turn.text} for turn in request.history),
                {"role": "user", "content": request.prompt},
            ],
            self._limit_field: request.max_output_tokens,
        }
        if self._takes_temperature:
            body["temperature"] = request.temperature
        if request.output_schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": request.schema_name,
                    "strict": True,
                    "schema": request.output_schema,
                },
            }
        return body

    def _read(self, content: bytes) -> Answer:
        chat = decode(content, _Chat)
        if not chat.choices:
            raise UnreadableAnswerError("the answer has no choices")
        choice = chat.choices[0]
        message = choice.message
        # A refusal in words finishes with "stop".
        reason = (
            FinishReason.REFUSAL
            if message.refusal
            else finish(FINISH_REASONS, choice.finish_reason)
        )
        return Answer(
            text=whole(message.content or message.refusal or "", reason),
            finish_reason=reason,
            usage=_usage(chat.usage),
            id=chat.id,
        )

    def _reader(self) -> Reader:
        return _Reader()


class _Reader:
    """Reads `chat.completion.chunk`s up to `[DONE]`."""

    def __init__(self) -> None:
        self.ended = False
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._reason: str | None = None
        self._usage = _NULL
        self._id: str | None = None

    def take(self, data: str) -> str:
        if data.strip() == "[DONE]":
            self.ended = True
            return ""
        chunk = decode(data.encode(), _Chunk)
        if chunk.error != _NULL:
            raise BrokenOffError("the answer broke off with an error of the provider")
        self._id = chunk.id or self._id
        if chunk.usage != _NULL:
            self._usage = chunk.usage
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._reason = choice.finish_reason or self._reason
        self._refusal.append(choice.delta.refusal or "")
        text = choice.delta.content or ""
        self._text.append(text)
        return text

    def answer(self) -> Answer:
        refusal = "".join(self._refusal)
        reason = FinishReason.REFUSAL if refusal else finish(FINISH_REASONS, self._reason)
        return Answer(
            text=whole("".join(self._text) or refusal, reason),
            finish_reason=reason,
            usage=_usage(self._usage),
            id=self._id,
        )


def limit_field(base_url: str | None, model: str) -> str:
    """The field that bounds the answer.

    OpenAI itself takes `max_completion_tokens` for all its models and refuses `max_tokens` for
    those that reason, also behind a proxy. All others know `max_tokens`, and some nothing else.
    """
    official = base_url is None or urlsplit(base_url).hostname in _OFFICIAL_HOSTS
    return "max_completion_tokens" if official or _REASONING.search(model) else "max_tokens"


_OFFICIAL_HOSTS: Final = ("api.openai.com", "eu.api.openai.com", "us.api.openai.com")


def _without(*headers: str) -> Mapping[str, str]:
    """Default headers that take these off again; the SDK's signature does not know it may."""
    omitted: dict[str, Any] = dict.fromkeys(headers, openai.Omit())
    return omitted


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice]
    usage: msgspec.Raw = _NULL
    id: str | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Part(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Part] = []
    usage: msgspec.Raw = _NULL
    id: str | None = None
    error: msgspec.Raw = _NULL


_Tokens = Annotated[int, Meta(ge=0)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    prompt_tokens_details: _PromptDetails | None = None


def _usage(raw: msgspec.Raw) -> Usage | None:
    """The counted tokens; None when the server did not count them (that is not zero)."""
    try:
        usage = decode(raw, _Usage)
    except UnreadableAnswerError:
        return None
    details = usage.prompt_tokens_details
    return Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_input_tokens=min((details and details.cached_tokens) or 0, usage.prompt_tokens),
    )
