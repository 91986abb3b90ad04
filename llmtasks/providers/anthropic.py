"""Anthropic's messages, and with a `base_url` everything that speaks them."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, ClassVar, Final

import anthropic
import msgspec
from msgspec import Meta

from llmtasks import settings
from llmtasks.messages import FinishReason, Request, Usage
from llmtasks.providers import sdk
from llmtasks.providers.base import OFFICIAL_URLS
from llmtasks.providers.failures import BrokenOffError, UnreadableAnswerError
from llmtasks.providers.sdk import Answer, Reader, SDKProvider, decode, finish, whole

#: The last API version with a temperature. The SDK's own (2026-10-21) answers 400 to any.
SAMPLING_VERSION: Final = "2023-06-01"

#: We offer no tools, so `tool_use` and `pause_turn` are as unexpected as an unknown word.
FINISH_REASONS: Final = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "refusal": FinishReason.REFUSAL,
}

#: claude-sonnet-4-5-20250929, claude-3-5-haiku, anthropic.claude-opus-4-6-v1 ...: (major, minor).
_VERSION = re.compile(
    r"claude-(?:(?:opus|sonnet|haiku)-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)", re.ASCII
)
#: From 4.7 on the models have no temperature.
_LAST_SAMPLING: Final = (4, 6)


class AnthropicProvider(SDKProvider):
    """A provider that speaks Anthropic's messages."""

    _path: ClassVar[str] = "/v1/messages"

    def __init__(self, provider: settings.Provider, api_key: str | None) -> None:
        key = sdk.usable_key(provider, api_key)
        self._takes_temperature = takes_temperature(provider.model)
        headers: dict[str, str] = {}
        if self._takes_temperature:
            headers["anthropic-version"] = SAMPLING_VERSION
        if provider.base_url is not None:
            headers["X-Api-Key"] = key  # the SDK sends `Authorization`; older proxies read this one
        client = anthropic.AsyncAnthropic(
            api_key=key,
            # The SDK's paths begin with /v1, as people's addresses often end.
            base_url=(provider.base_url or OFFICIAL_URLS["anthropic"])
            .rstrip("/")
            .removesuffix("/v1"),
            max_retries=0,
            http_client=anthropic.DefaultAioHttpClient(**sdk.http_options(provider)),
            default_headers=headers,
            open_telemetry=False,  # its spans can hold the document
        )
        sdk.never_log_bodies("anthropic")
        super().__init__(provider, api_key, client)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                *({"role": turn.role, "content": turn.text} for turn in request.history),
                {"role": "user", "content": request.prompt},
            ],
            "max_tokens": request.max_output_tokens,
        }
        if request.system:
            body["system"] = request.system
        if self._takes_temperature:
            body["temperature"] = request.temperature
        if request.output_schema is not None:
            # Every current model has this; a forced tool is refused by those that think.
            schema = _allowed_schema(msgspec.json.encode(request.output_schema))
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return body

    def _read(self, content: bytes) -> Answer:
        message = decode(content, _Message)
        reason = finish(FINISH_REASONS, message.stop_reason)
        text = "".join(block.text for block in message.content if block.type == "text")
        return Answer(
            text=whole(text, reason),
            finish_reason=reason,
            usage=_usage(message.usage),
            id=message.id,
        )

    def _reader(self) -> Reader:
        return _Reader()


class _Reader:
    """Reads events from `message_start` to `message_stop`. Of its blocks, only text is the answer."""

    def __init__(self) -> None:
        self.ended = False
        self._text: list[str] = []
        self._reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._id: str | None = None

    def take(self, data: str) -> str:
        event = decode(data.encode(), _Event)
        match event.type:
            case "error":
                raise BrokenOffError("the answer broke off with an error of the provider")
            case "message_start" if event.message is not None:
                self._id = event.message.id
                self._count(event.message.usage)
            case "message_delta":
                self._reason = (event.delta and event.delta.stop_reason) or self._reason
                self._count(event.usage)
            case "message_stop":
                self.ended = True
            case "content_block_delta" if event.delta is not None:
                if event.delta.type == "text_delta":
                    self._text.append(event.delta.text)
                    return event.delta.text
        return ""

    def _count(self, usage: dict[str, Any] | None) -> None:
        """The last word on each kind of token counts; what is not said does not take back."""
        said = {name: value for name, value in (usage or {}).items() if value is not None}
        self._usage |= said

    def answer(self) -> Answer:
        reason = finish(FINISH_REASONS, self._reason)
        return Answer(
            text=whole("".join(self._text), reason),
            finish_reason=reason,
            usage=_usage(msgspec.Raw(msgspec.json.encode(self._usage))),
            id=self._id,
        )


def takes_temperature(model: str) -> bool:
    """Whether the model has a temperature: every Claude up to 4.6, and what is no Claude at all.

    A Claude whose name says no version is taken for a new one: those refuse the whole request.
    """
    if "claude" not in model:
        return True
    version = _VERSION.search(model)
    return version is not None and (int(version[1]), int(version[2] or 0)) <= _LAST_SAMPLING


@functools.lru_cache(maxsize=64)
def _allowed_schema(schema: bytes) -> dict[str, Any]:
    """The schema with what the API refuses (lengths, ranges) moved into descriptions."""
    return anthropic.transform_schema(msgspec.json.decode(schema, type=dict[str, Any]))


class _Block(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    content: list[_Block]
    stop_reason: str | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    id: str | None = None


class _Begun(msgspec.Struct):
    id: str | None = None
    usage: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    message: _Begun | None = None
    delta: _Delta | None = None
    usage: dict[str, Any] | None = None


_Tokens = Annotated[int, Meta(ge=0)]


class _Usage(msgspec.Struct):
    input_tokens: _Tokens
    output_tokens: _Tokens
    cache_read_input_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None


def _usage(raw: msgspec.Raw) -> Usage | None:
    """The counted tokens; None when the server did not count them (that is not zero).

    The API's `input_tokens` leave out what was read from and written to its prompt cache.
    """
    try:
        usage = decode(raw, _Usage)
    except UnreadableAnswerError:
        return None
    cached = usage.cache_read_input_tokens or 0
    return Usage(
        input_tokens=usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
        output_tokens=usage.output_tokens,
        cached_input_tokens=cached,
    )
