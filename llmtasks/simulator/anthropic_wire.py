"""The Anthropic protocol: messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from llmtasks.simulator.config import Api
from llmtasks.simulator.protocol import (
    Answer,
    Ask,
    BadRequestError,
    Failure,
    Message,
    Part,
    Stream,
    digest,
    input_tokens,
    joined,
)
from llmtasks.simulator.quota import DIMENSIONS, Account

#: Our failure kinds -> the type as Anthropic writes it.
_ERRORS: Final[Mapping[str, str]] = {
    "invalid_request": "invalid_request_error",
    "context_window": "invalid_request_error",
    "content_filter": "invalid_request_error",
    "authentication": "authentication_error",
    "not_found": "not_found_error",
    "requests": "rate_limit_error",
    "tokens": "rate_limit_error",
    "input_tokens": "rate_limit_error",
    "output_tokens": "rate_limit_error",
    "insufficient_quota": "billing_error",
    "server": "api_error",
    "overloaded": "overloaded_error",
}
_FINISH: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "refusal": "refusal",
    "content_filter": "refusal",  # not sent: Anthropic's filter answers with an error
}


class _Format(msgspec.Struct):
    type: str = "json_schema"
    schema: dict[str, Any] | None = None


class _OutputConfig(msgspec.Struct):
    format: _Format | None = None


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any] | None = None


class _ToolChoice(msgspec.Struct):
    type: str = "auto"
    name: str | None = None


class _CountBody(msgspec.Struct):
    model: str
    messages: list[Message]
    system: str | list[Part] | None = None


class _Body(msgspec.Struct):
    model: str
    messages: list[Message]
    max_tokens: int
    system: str | list[Part] | None = None
    stream: bool | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    tools: list[_Tool] = msgspec.field(default_factory=list)
    tool_choice: _ToolChoice | None = None


_decoder = msgspec.json.Decoder(_Body)
_count_decoder = msgspec.json.Decoder(_CountBody)


class AnthropicWire:
    """Messages, whole and streamed, and the counting of tokens."""

    api: Api = "anthropic"
    request_id_header = "request-id"

    def read(self, body: bytes, chars_per_token: float) -> Ask:
        """The question of a messages request."""
        try:
            asked = _decoder.decode(body)
        except msgspec.DecodeError as error:
            raise BadRequestError(str(error)) from error
        if asked.max_tokens < 1:
            raise BadRequestError("max_tokens: must be at least 1")
        texts = _texts(asked.system, asked.messages)
        schema, tool = _form(asked)
        return Ask(
            api=self.api,
            model=asked.model,
            texts=texts,
            digest=digest(texts),
            input_tokens=input_tokens(texts, chars_per_token),
            max_tokens=asked.max_tokens,
            stream=bool(asked.stream),
            schema=schema,
            tool=tool,
        )

    def count(self, body: bytes, chars_per_token: float) -> tuple[str, int]:
        """The model and the input tokens of a count_tokens request."""
        try:
            asked = _count_decoder.decode(body)
        except msgspec.DecodeError as error:
            raise BadRequestError(str(error)) from error
        return asked.model, input_tokens(_texts(asked.system, asked.messages), chars_per_token)

    def whole(self, ask: Ask, answer: Answer, request_id: str, now: float) -> bytes:  # noqa: ARG002
        """A `message`."""
        return msgspec.json.encode(
            _message(ask, request_id, answer.output_tokens)
            | {
                "content": _content(ask, answer, request_id),
                "stop_reason": _stop_reason(ask, answer),
            }
        )

    def events(
        self,
        ask: Ask,
        answer: Answer,
        pieces: Sequence[str],
        request_id: str,
        now: float,  # noqa: ARG002 - messages carry no date
    ) -> Stream:
        """From `message_start` to `message_stop`."""
        block, delta = _block(ask, answer, request_id)
        message = _message(ask, request_id, 1) | {"content": [], "stop_reason": None}
        finish = {"stop_reason": _stop_reason(ask, answer), "stop_sequence": None}
        usage = {"input_tokens": ask.input_tokens, "output_tokens": answer.output_tokens}
        return Stream(
            head=_event("message_start", message=message)
            + _event("content_block_start", index=0, content_block=block)
            + _event("ping"),
            pieces=[
                _event("content_block_delta", index=0, delta={"type": delta[0], delta[1]: piece})
                for piece in pieces
            ],
            tail=_event("content_block_stop", index=0)
            + _event("message_delta", delta=finish, usage=usage)
            + _event("message_stop"),
        )

    def error(self, failure: Failure, request_id: str) -> bytes:
        """Anthropic's error object."""
        return msgspec.json.encode(
            {
                "type": "error",
                "error": {"type": _ERRORS[failure.kind], "message": failure.message},
                "request_id": request_id,
            }
        )

    def limits(self, account: Account, now: float) -> Iterator[tuple[str, str]]:
        """`anthropic-ratelimit-*` of every limit the account has."""
        for dimension in DIMENSIONS:
            bucket = getattr(account, dimension)
            if bucket is None:
                continue
            name = dimension.replace("_", "-")
            reading = bucket.reading(now)
            yield f"anthropic-ratelimit-{name}-limit", str(int(reading.limit))
            yield f"anthropic-ratelimit-{name}-remaining", str(int(reading.remaining))
            yield f"anthropic-ratelimit-{name}-reset", rfc3339(now + reading.reset_s)


def rfc3339(epoch_s: float) -> str:
    """A time as Anthropic writes it, in whole seconds rounded up: 2024-01-31T12:00:00Z."""
    moment = datetime.fromtimestamp(epoch_s, UTC)
    if moment.microsecond:
        moment = moment.replace(microsecond=0) + timedelta(seconds=1)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _texts(system: str | list[Part] | None, messages: Sequence[Message]) -> list[str]:
    if not messages:
        raise BadRequestError("messages: at least one message is required")
    texts = [message.text() for message in messages]
    return [joined(system), *texts] if system else texts


def _form(asked: _Body) -> tuple[Mapping[str, Any] | None, str | None]:
    """The schema that the answer must have, and the tool that must be called, if any."""
    form = asked.output_config.format if asked.output_config else asked.output_format
    if form is not None:
        if form.schema is None:
            raise BadRequestError("output_config.format.schema: field required")
        return form.schema, None
    choice = asked.tool_choice or _ToolChoice()
    if choice.type not in ("tool", "any") or not asked.tools:
        return None, None
    for tool in asked.tools:
        if choice.type == "any" or tool.name == choice.name:
            return tool.input_schema or {"type": "object"}, tool.name
    raise BadRequestError("tool_choice: no tool has this name")


def _message(ask: Ask, request_id: str, output_tokens: int) -> dict[str, Any]:
    return {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "stop_sequence": None,
        "usage": {
            "input_tokens": ask.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
        },
    }


def _content(ask: Ask, answer: Answer, request_id: str) -> list[dict[str, Any]]:
    if ask.tool is None or answer.finish == "refusal":
        return [{"type": "text", "text": answer.text}] if answer.text else []
    try:
        given = msgspec.json.decode(answer.text)
    except msgspec.DecodeError:
        given = {}  # cut by max_tokens: what is there is no JSON
    return [{"type": "tool_use", "id": f"toolu_{request_id}", "name": ask.tool, "input": given}]


def _block(ask: Ask, answer: Answer, request_id: str) -> tuple[dict[str, Any], tuple[str, str]]:
    """An empty content block, and the type and field of its deltas."""
    if ask.tool is None or answer.finish == "refusal":
        return {"type": "text", "text": ""}, ("text_delta", "text")
    block = {"type": "tool_use", "id": f"toolu_{request_id}", "name": ask.tool, "input": {}}
    return block, ("input_json_delta", "partial_json")


def _stop_reason(ask: Ask, answer: Answer) -> str:
    if ask.tool is not None and answer.finish == "stop":
        return "tool_use"
    return _FINISH[answer.finish]


def _event(kind: str, **fields: Any) -> bytes:
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
