"""The OpenAI protocol: chat completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from llmtasks.simulator.config import Api
from llmtasks.simulator.protocol import (
    DEFAULT_MAX_TOKENS,
    Answer,
    Ask,
    BadRequestError,
    Failure,
    Message,
    Stream,
    digest,
    input_tokens,
)
from llmtasks.simulator.quota import Account, Bucket, Reading

_ANY_OBJECT: Final = {"type": "object", "properties": {"answer": {"type": "string"}}}

#: Our failure kinds -> (type, code) as OpenAI writes them.
_ERRORS: Final[Mapping[str, tuple[str, str | None]]] = {
    "invalid_request": ("invalid_request_error", None),
    "context_window": ("invalid_request_error", "context_length_exceeded"),
    "authentication": ("invalid_request_error", "invalid_api_key"),
    "not_found": ("invalid_request_error", "model_not_found"),
    "requests": ("requests", "rate_limit_exceeded"),
    "tokens": ("tokens", "rate_limit_exceeded"),
    "input_tokens": ("tokens", "rate_limit_exceeded"),
    "output_tokens": ("tokens", "rate_limit_exceeded"),
    "insufficient_quota": ("insufficient_quota", "insufficient_quota"),
    "server": ("server_error", None),
    "overloaded": ("service_unavailable_error", None),
}
_FINISH: Final = {
    "stop": "stop",
    "length": "length",
    "refusal": "stop",
    "content_filter": "content_filter",
}


class _JsonSchema(msgspec.Struct):
    schema: dict[str, Any] | None = None


class _ResponseFormat(msgspec.Struct):
    type: str = "text"
    json_schema: _JsonSchema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    model: str
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None


_decoder = msgspec.json.Decoder(_Body)


class OpenAIWire:
    """Chat completions, whole and streamed."""

    api: Api = "openai"
    request_id_header = "x-request-id"

    def read(self, body: bytes, chars_per_token: float) -> Ask:
        """The question of a chat completion request."""
        try:
            asked = _decoder.decode(body)
        except msgspec.DecodeError as error:
            raise BadRequestError(str(error)) from error
        if not asked.messages:
            raise BadRequestError("'messages' is empty")
        if asked.n not in (None, 1):
            raise BadRequestError("the simulator gives one answer per request: 'n' must be 1")
        max_tokens = asked.max_completion_tokens or asked.max_tokens or DEFAULT_MAX_TOKENS
        if max_tokens < 1:
            raise BadRequestError("'max_tokens' must be at least 1")
        texts = [message.text() for message in asked.messages]
        return Ask(
            api=self.api,
            model=asked.model,
            texts=texts,
            digest=digest(texts),
            input_tokens=input_tokens(texts, chars_per_token),
            max_tokens=max_tokens,
            stream=bool(asked.stream),
            include_usage=asked.stream_options is not None and asked.stream_options.include_usage,
            schema=_schema(asked.response_format),
        )

    def whole(self, ask: Ask, answer: Answer, request_id: str, now: float) -> bytes:
        """A `chat.completion`."""
        refused = answer.finish == "refusal"
        message = {
            "role": "assistant",
            "content": None if refused or answer.finish == "content_filter" else answer.text,
            "refusal": answer.text if refused else None,
        }
        return msgspec.json.encode(
            {
                "id": f"chatcmpl-{request_id}",
                "object": "chat.completion",
                "created": int(now),
                "model": ask.model,
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": _FINISH[answer.finish],
                        "logprobs": None,
                    }
                ],
                "usage": _usage(ask, answer),
            }
        )

    def events(
        self, ask: Ask, answer: Answer, pieces: Sequence[str], request_id: str, now: float
    ) -> Stream:
        """`chat.completion.chunk`s, the usage if it was asked for, and `[DONE]`."""
        base = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": int(now),
            "model": ask.model,
        }
        field = "refusal" if answer.finish == "refusal" else "content"
        tail = _chunk(base, {}, _FINISH[answer.finish])
        if ask.include_usage:
            tail += _frame({**base, "choices": [], "usage": _usage(ask, answer)})
        return Stream(
            head=_chunk(base, {"role": "assistant", "content": ""}, None),
            pieces=[_chunk(base, {field: piece}, None) for piece in pieces],
            tail=tail + b"data: [DONE]\n\n",
        )

    def error(self, failure: Failure, request_id: str) -> bytes:  # noqa: ARG002 - in a header here
        """OpenAI's error object."""
        kind, code = _ERRORS[failure.kind]
        return msgspec.json.encode(
            {"error": {"message": failure.message, "type": kind, "param": None, "code": code}}
        )

    def limits(self, account: Account, now: float) -> Iterator[tuple[str, str]]:
        """`x-ratelimit-*`; of input and output limits set apart the one nearer to its end."""
        buckets: list[tuple[str, Bucket]] = []
        if account.requests is not None:
            buckets.append(("requests", account.requests))
        apart = [b for b in (account.input_tokens, account.output_tokens) if b is not None]
        tokens = account.tokens or min(apart, key=lambda b: _left(b.reading(now)), default=None)
        if tokens is not None:
            buckets.append(("tokens", tokens))
        for name, bucket in buckets:
            reading = bucket.reading(now)
            yield f"x-ratelimit-limit-{name}", str(int(reading.limit))
            yield f"x-ratelimit-remaining-{name}", str(int(reading.remaining))
            yield f"x-ratelimit-reset-{name}", go_duration(reading.reset_s)


def go_duration(seconds: float) -> str:
    """Seconds as Go writes them, in whole milliseconds rounded up: 9ms, 1.5s, 6m0s, 1h0m0s."""
    ms = math.ceil(round(seconds * 1000, 3))
    if ms < 1000:  # noqa: PLR2004 - a second
        return f"{ms}ms" if ms else "0s"
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _left(reading: Reading) -> float:
    return reading.remaining / reading.limit


def _schema(form: _ResponseFormat | None) -> Mapping[str, Any] | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return _ANY_OBJECT
    if form.json_schema is None or form.json_schema.schema is None:
        raise BadRequestError("'response_format.json_schema.schema' is missing")
    return form.json_schema.schema


def _usage(ask: Ask, answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": ask.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": ask.input_tokens + answer.output_tokens,
    }


def _chunk(base: Mapping[str, Any], delta: Mapping[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return _frame({**base, "choices": [choice]})


def _frame(data: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
