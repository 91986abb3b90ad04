"""What every kind of provider promises, over the real SDKs and a real connection."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from llmtasks import errors, settings
from llmtasks.messages import FinishReason, Request, StatedLimits, Usage
from llmtasks.providers import Provider, build
from tests.support.model_server import Fault, ModelServer, Reply, free_port, model_server
from tests.support.simulated import simulated

pytestmark = pytest.mark.anyio

KEY = "sk-conformance-key"
DOCUMENT = "Ms Doe of 4 Elm Street was seen on Monday."
REQUEST = Request(system="Summarize.", prompt=DOCUMENT, max_output_tokens=300, temperature=0.0)
SCHEMA = {
    "type": "object",
    "properties": {"people": {"type": "array", "items": {"type": "string"}}},
    "required": ["people"],
    "additionalProperties": False,
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Kind:
    """One API: its words for what every API says."""

    name: str
    path: str
    stop: str
    length: str
    refusal: str
    request_id: str
    answer: Callable[..., dict[str, Any]]

    def reply(self, text: str | None = "Hello.", reason: str | None = "", **more: Any) -> Reply:
        body = self.answer(text, self.stop if reason == "" else reason)
        return Reply(body=json.dumps(body | more).encode(), headers={self.request_id: "req_1"})


def _chat(text: str | None, reason: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "small-1-dated",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 5,
            "total_tokens": 25,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    }


def _message(text: str | None, reason: str | None) -> dict[str, Any]:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    said = [{"type": "text", "text": text}] if text is not None else []
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "small-1-dated",
        "content": [thought, *said],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_read_input_tokens": 8,
            "cache_creation_input_tokens": 2,
        },
    }


KINDS = [
    Kind(
        name="openai",
        path="/chat/completions",
        stop="stop",
        length="length",
        refusal="content_filter",
        request_id="x-request-id",
        answer=_chat,
    ),
    Kind(
        name="anthropic",
        path="/v1/messages",
        stop="end_turn",
        length="max_tokens",
        refusal="refusal",
        request_id="request-id",
        answer=_message,
    ),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as running:
        yield running


@asynccontextmanager
async def provider(
    kind: Kind, base_url: str | None, api_key: str | None = KEY, **more: Any
) -> AsyncIterator[Provider]:
    entry = {"name": "mine", "kind": kind.name, "model": "small-1", "base_url": base_url}
    built = build(settings.Provider(**(entry | more)), api_key)
    try:
        yield built
    finally:
        await built.aclose()


async def failing(
    kind: Kind, server: ModelServer, reply: Reply, **more: Any
) -> errors.ProviderError:
    """Ask once, and give the failure; it must be one attempt, and tell nothing."""
    server.script(reply)
    async with provider(kind, server.url, **more) as mine:
        with pytest.raises(errors.ProviderError) as failure:
            await mine.complete(REQUEST)
    assert len(server.received) == 1, "a provider never retries"
    assert failure.value.provider == "mine"
    assert failure.value.__cause__ is None
    assert failure.value.__context__ is None, "the SDK's error quotes the answer"
    for secret in (KEY, DOCUMENT, "Doe"):
        assert secret not in repr(failure.value)
    return failure.value


def error_reply(status: int, **headers: str) -> Reply:
    """An error that quotes the prompt and the key, as some servers do."""
    error = {"message": f"cannot do {DOCUMENT!r} for {KEY}", "type": "some_error", "code": None}
    body = {"type": "error", "error": error}
    return Reply(
        status=status,
        body=json.dumps(body).encode(),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


# What is asked, and what comes back


async def test_a_whole_answer(kind: Kind, server: ModelServer) -> None:
    server.script(kind.reply("Grüße 👋"))
    async with provider(kind, server.url) as mine:
        completion = await mine.complete(REQUEST)
    assert completion.text == "Grüße 👋"
    assert completion.finish_reason is FinishReason.STOP
    assert (completion.provider, completion.model) == ("mine", "small-1")
    assert completion.usage == Usage(input_tokens=20, output_tokens=5, cached_input_tokens=8)
    assert completion.request_id == "req_1"
    assert completion.latency_s > 0


async def test_the_question_is_sent_as_it_is(kind: Kind, server: ModelServer) -> None:
    server.script(kind.reply())
    async with provider(kind, server.url) as mine:
        await mine.complete(REQUEST)
    (received,) = server.received
    assert (received.method, received.path) == ("POST", kind.path)
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.body["model"] == "small-1"
    assert received.body["max_tokens"] == 300
    assert received.body["temperature"] == 0.0
    assert received.body["messages"][-1] == {"role": "user", "content": DOCUMENT}
    assert "response_format" not in received.body
    assert "output_config" not in received.body


async def test_a_schema_is_sent_for_the_server_to_enforce(kind: Kind, server: ModelServer) -> None:
    server.script(kind.reply())
    request = Request(
        system="s", prompt="p", max_output_tokens=9, output_schema=SCHEMA, schema_name="entities"
    )
    async with provider(kind, server.url) as mine:
        await mine.complete(request)
    body = server.received[0].body
    if kind.name == "openai":
        assert body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "entities", "strict": True, "schema": SCHEMA},
        }
    else:
        assert body["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}


async def test_a_cut_answer_says_so_even_without_text(kind: Kind, server: ModelServer) -> None:
    server.script(kind.reply("Half an ans", kind.length), kind.reply(None, kind.length))
    async with provider(kind, server.url) as mine:
        cut = await mine.complete(REQUEST)
        spent_on_thinking = await mine.complete(REQUEST)
    assert (cut.text, cut.finish_reason) == ("Half an ans", FinishReason.LENGTH)
    assert (spent_on_thinking.text, spent_on_thinking.finish_reason) == ("", FinishReason.LENGTH)


async def test_a_refusal_or_content_filter_is_a_refusal(kind: Kind, server: ModelServer) -> None:
    server.script(kind.reply(None, kind.refusal))
    async with provider(kind, server.url) as mine:
        completion = await mine.complete(REQUEST)
    assert completion.finish_reason is FinishReason.REFUSAL
    assert completion.usage is not None


async def test_an_openai_refusal_in_words_is_a_refusal(server: ModelServer) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    server.script(KINDS[0].reply(choices=[{"message": message, "finish_reason": "stop"}]))
    async with provider(KINDS[0], server.url) as mine:
        assert (await mine.complete(REQUEST)).finish_reason is FinishReason.REFUSAL


async def test_a_full_context_window_is_a_cut_answer(server: ModelServer) -> None:
    server.script(KINDS[1].reply("Half", "model_context_window_exceeded"))
    async with provider(KINDS[1], server.url) as mine:
        assert (await mine.complete(REQUEST)).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1}, {"input_tokens": "7"}, []])
async def test_uncounted_tokens_are_unknown_and_not_zero(
    kind: Kind, server: ModelServer, usage: object
) -> None:
    server.script(kind.reply(usage=usage))
    async with provider(kind, server.url) as mine:
        completion = await mine.complete(REQUEST)
    assert completion.text == "Hello."
    assert completion.usage is None


# Answers that are none


@pytest.mark.parametrize("reason", [None, "tool_use", "pause_turn", "tool_calls", "abort", "ende"])
async def test_an_unknown_end_is_never_success(
    kind: Kind, server: ModelServer, reason: str | None
) -> None:
    failure = await failing(kind, server, kind.reply("Looks whole.", reason))
    assert type(failure) is errors.InvalidResponse
    assert failure.maybe_paid


@pytest.mark.parametrize("text", [None, "", " \n"])
async def test_an_empty_answer_is_never_success(
    kind: Kind, server: ModelServer, text: str | None
) -> None:
    failure = await failing(kind, server, kind.reply(text))
    assert type(failure) is errors.InvalidResponse
    assert failure.maybe_paid


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Doe</html>",
        b'{"choices": [{"mess',
        b"null",
        b"[]",
        b'{"error": {"message": "Doe"}}',
        b'{"choices": [], "content": 7}',
        b'{"choices": [{"message": {"content": 7}}], "content": [{"type": 7}]}',
        b'{"choices": [{"message": {"content": "\xff\xfe"}}], "content": [{"type": "\xff"}]}',
    ],
)
async def test_a_body_that_is_not_of_the_protocol(
    kind: Kind, server: ModelServer, body: bytes
) -> None:
    failure = await failing(kind, server, Reply(body=body))
    assert type(failure) is errors.InvalidResponse
    assert failure.maybe_paid


# Errors that the provider names


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "2"}, 2.0),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "3000"}, 3.0),
        (
            {
                "date": "Sun, 22 Nov 2026 12:00:00 GMT",
                "retry_after": "Sun, 22 Nov 2026 12:01:15 GMT",
            },
            75.0,
        ),
        ({"X_RateLimit_Remaining_Tokens": "0", "X_RateLimit_Reset_Tokens": "6m0s"}, 360.0),
        (
            {
                "Date": "Sun, 22 Nov 2026 12:00:00 GMT",
                "anthropic_ratelimit_requests_reset": "2026-11-22T12:00:30Z",
            },
            30.0,
        ),
        ({}, None),
    ],
)
async def test_a_429_carries_its_wait(
    kind: Kind, server: ModelServer, headers: dict[str, str], seconds: float | None
) -> None:
    failure = await failing(kind, server, error_reply(429, **headers))
    assert type(failure) is errors.RateLimitError
    assert failure.retry_after == seconds
    assert not failure.maybe_paid


async def test_a_429_of_billing_is_no_rate_limit(kind: Kind, server: ModelServer) -> None:
    body = json.dumps({"error": {"type": "billing_error", "code": "insufficient_quota"}}).encode()
    failure = await failing(kind, server, Reply(status=429, body=body))
    assert type(failure) is errors.QuotaExhausted


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
async def test_a_provider_in_trouble(kind: Kind, server: ModelServer, status: int) -> None:
    failure = await failing(kind, server, error_reply(status, retry_after="4"))
    assert type(failure) is errors.ProviderUnavailable
    assert failure.retry_after == 4.0


@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_key(kind: Kind, server: ModelServer, status: int) -> None:
    failure = await failing(kind, server, error_reply(status))
    assert type(failure) is errors.AuthenticationFailed


async def test_an_unknown_model(kind: Kind, server: ModelServer) -> None:
    failure = await failing(kind, server, error_reply(404))
    assert type(failure) is errors.RequestRejected
    assert "'small-1'" in str(failure)


async def test_a_document_too_long_for_the_model(kind: Kind, server: ModelServer) -> None:
    said = {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}
    failure = await failing(
        kind, server, Reply(status=400, body=json.dumps({"error": said}).encode())
    )
    assert type(failure) is errors.ContextWindowExceeded


async def test_a_redirect_is_not_followed_with_key_and_document(
    kind: Kind, server: ModelServer
) -> None:
    async with model_server() as elsewhere:
        failure = await failing(kind, server, error_reply(307, location=elsewhere.url + "/steal"))
        assert elsewhere.received == []
    assert type(failure) is errors.RequestRejected


# Limits that the provider states


async def test_an_answer_and_a_rate_limit_carry_the_limits_of_the_provider(kind: Kind) -> None:
    """Over HTTP to a provider that enforces them."""
    if kind.name == "openai":
        limits: dict[str, float] = {"requests": 1, "tokens": 60_000}
    else:
        limits = {"requests": 1, "input_tokens": 30_000, "output_tokens": 8000}
    with simulated(**{f"{name}_per_minute": limit for name, limit in limits.items()}) as real:
        url = real.openai_url if kind.name == "openai" else real.anthropic_url
        async with provider(kind, url) as mine:
            answer = await mine.complete(REQUEST)
            with pytest.raises(errors.RateLimitError) as refused:
                await mine.complete(REQUEST)
    assert answer.limits == StatedLimits(**limits)
    assert refused.value.limits == StatedLimits(**limits)


async def test_a_provider_that_states_no_limits_is_one_that_states_none(
    kind: Kind, server: ModelServer
) -> None:
    server.script(kind.reply(), error_reply(429, retry_after="1"))
    async with provider(kind, server.url) as mine:
        assert (await mine.complete(REQUEST)).limits is None
        with pytest.raises(errors.RateLimitError) as refused:
            await mine.complete(REQUEST)
    assert refused.value.limits is None


# Connections that break


async def test_silence_ends_at_the_deadline(kind: Kind, server: ModelServer) -> None:
    failure = await failing(kind, server, Reply(fault=Fault.SILENCE), timeout_s=0.2)
    assert type(failure) is errors.ProviderTimeout
    assert failure.maybe_paid
    await asyncio.wait_for(server.client_left.wait(), 5)


async def test_the_deadline_covers_the_body_too(kind: Kind, server: ModelServer) -> None:
    half = Reply(body=kind.reply().body, fault=Fault.STALL)
    failure = await failing(kind, server, half, timeout_s=0.2)
    assert type(failure) is errors.ProviderTimeout
    assert failure.maybe_paid
    await asyncio.wait_for(server.client_left.wait(), 5)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT])
async def test_a_broken_connection_may_have_been_paid(
    kind: Kind, server: ModelServer, fault: Fault
) -> None:
    failure = await failing(kind, server, Reply(body=kind.reply().body, fault=fault))
    assert type(failure) is errors.ProviderUnavailable
    assert failure.maybe_paid


async def test_garbage_instead_of_http(kind: Kind, server: ModelServer) -> None:
    failure = await failing(kind, server, Reply(fault=Fault.GARBAGE))
    assert isinstance(failure, errors.TransientProviderError)
    assert failure.maybe_paid


async def test_a_refused_connection_cost_nothing(kind: Kind) -> None:
    async with provider(kind, f"http://127.0.0.1:{free_port()}") as mine:
        with pytest.raises(errors.ProviderUnavailable) as failure:
            await mine.complete(REQUEST)
    assert not failure.value.maybe_paid


@pytest.mark.parametrize("fault", [Fault.SILENCE, Fault.STALL])
async def test_cancelling_closes_the_connection(
    kind: Kind, server: ModelServer, fault: Fault
) -> None:
    server.script(Reply(body=kind.reply().body, fault=fault), kind.reply())
    async with provider(kind, server.url) as mine:
        call = asyncio.create_task(mine.complete(REQUEST))
        await asyncio.wait_for(server.arrived.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.client_left.wait(), 5)
        assert (await mine.complete(REQUEST)).text == "Hello.", "the provider is still usable"


async def test_connections_are_kept_for_the_next_call(kind: Kind, server: ModelServer) -> None:
    server.script(kind.reply())
    async with provider(kind, server.url) as mine:
        for _ in range(3):
            await mine.complete(REQUEST)
    assert (len(server.received), server.connections) == (3, 1)


async def test_as_many_connections_as_calls(kind: Kind, server: ModelServer) -> None:
    """aiohttp's own limit is 100: the 101st call would wait on a deadline that already runs."""
    server.script(Reply(fault=Fault.SILENCE))
    async with provider(kind, server.url) as mine:
        calls = [asyncio.create_task(mine.complete(REQUEST)) for _ in range(120)]
        async with asyncio.timeout(20):
            while len(server.received) < 120:
                server.arrived.clear()
                await server.arrived.wait()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert server.connections == 120


# Keys, models and what surrounds them


async def test_no_key_is_taken_from_the_environment(
    kind: Kind, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key without a setting would go to somebody else's server."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "of-the-environment")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "of-the-environment")
    server.script(kind.reply())
    async with provider(kind, server.url, api_key=None) as mine:
        await mine.complete(REQUEST)
    assert "of-the-environment" not in str(server.received[0].headers)


async def test_no_address_is_taken_from_the_environment(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    async with provider(kind, None, api_key_env="KEY") as mine:
        client: Any = mine
        assert client._client.base_url.host == f"api.{kind.name}.com"


@pytest.mark.parametrize("key", ["", "a\nb", "pässword", "two words"])
def test_a_key_that_fits_no_header_is_a_configuration_error(kind: Kind, key: str) -> None:
    entry = settings.Provider(name="mine", kind=kind.name, model="m", api_key_env="MY_KEY")
    with pytest.raises(errors.ConfigurationError, match="MY_KEY") as failure:
        build(entry, key)
    assert not key or key not in str(failure.value)


async def test_text_that_is_not_unicode_is_rejected_without_a_call(
    kind: Kind, server: ModelServer
) -> None:
    request = Request(system="s", prompt="Doe \ud800", max_output_tokens=9)
    async with provider(kind, server.url) as mine:
        with pytest.raises(errors.RequestRejected) as failure:
            await mine.complete(request)
    assert server.received == []
    assert "Doe" not in repr(failure.value)


async def test_debug_logging_tells_no_document(
    kind: Kind, server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script(kind.reply())
    async with provider(kind, server.url) as mine:
        await mine.complete(REQUEST)
    assert "Doe" not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("base_url", "model", "limit", "temperature"),
    [
        (None, "gpt-4o-mini", "max_completion_tokens", True),
        (None, "gpt-5-mini", "max_completion_tokens", False),
        (None, "o4-mini", "max_completion_tokens", False),
        (None, "gpt-4.1", "max_completion_tokens", True),
        ("https://eu.api.openai.com/v1", "gpt-4o", "max_completion_tokens", True),
        ("http://proxy/v1", "openai/gpt-5.1", "max_completion_tokens", False),
        ("http://vllm/v1", "Qwen/Qwen3-8B", "max_tokens", True),
        ("http://vllm/v1", "openai/gpt-oss-120b", "max_tokens", True),
        ("http://azure/v1", "gpt-35-turbo", "max_tokens", True),
    ],
)
async def test_openai_models_get_the_fields_they_take(
    base_url: str | None, model: str, limit: str, *, temperature: bool
) -> None:
    async with provider(KINDS[0], base_url, model=model, api_key_env="KEY") as mine:
        built: Any = mine
        body = built._body(REQUEST)
    assert body[limit] == 300
    assert {"max_tokens", "max_completion_tokens"} & set(body) == {limit}
    assert ("temperature" in body) is temperature


@pytest.mark.parametrize(
    ("model", "temperature"),
    [
        ("claude-3-5-haiku-20241022", True),
        ("claude-haiku-4-5", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-sonnet-4-6", True),
        ("anthropic.claude-opus-4-5-20251101-v1:0", True),
        ("claude-opus-4-7", False),
        ("claude-sonnet-5", False),
        ("claude-haiku-5-5", False),
        ("claude-opus-10", False),
        ("claude-mythos-preview", False),
        ("claude-fable-5-2", False),
        ("smollm2", True),
    ],
)
async def test_a_claude_gets_a_temperature_only_where_it_has_one(
    server: ModelServer, model: str, *, temperature: bool
) -> None:
    server.script(KINDS[1].reply())
    async with provider(KINDS[1], server.url, model=model) as mine:
        await mine.complete(REQUEST)
    (received,) = server.received
    assert ("temperature" in received.body) is temperature
    assert (received.headers["anthropic-version"] == "2023-06-01") is temperature


async def test_a_schemas_limits_that_anthropic_refuses_become_descriptions(
    server: ModelServer,
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    request = Request(system="s", prompt="p", max_output_tokens=9, output_schema=schema)
    server.script(KINDS[1].reply())
    async with provider(KINDS[1], server.url) as mine:
        await mine.complete(request)
    sent = server.received[0].body["output_config"]["format"]["schema"]
    assert sent["properties"]["n"] == {"type": "integer", "description": "{minimum: 1}"}
    assert schema["properties"] == {"n": {"type": "integer", "minimum": 1}}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_an_anthropic_address_may_end_in_v1(server: ModelServer, suffix: str) -> None:
    server.script(KINDS[1].reply())
    async with provider(KINDS[1], server.url + suffix) as mine:
        await mine.complete(REQUEST)
    assert server.received[0].path == "/v1/messages"


def test_only_the_configured_sdk_is_loaded(kind: Kind) -> None:
    code = f"""
import sys
from llmtasks import settings
from llmtasks.providers import build
loaded = [name for name in ("openai", "anthropic", "httpx2", "aiohttp") if name in sys.modules]
assert not loaded, loaded
build(settings.Provider(name="p", kind={kind.name!r}, model="m", base_url="http://h"), None)
assert {{"openai", "anthropic"}} & set(sys.modules) == {{{kind.name!r}}}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
