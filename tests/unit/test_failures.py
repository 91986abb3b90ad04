from __future__ import annotations

import asyncio
import importlib
import json
import socket
import ssl
import sys
from collections.abc import Iterator

import aiohttp
import anthropic
import anthropic._exceptions
import httpx2
import msgspec
import openai
import openai._exceptions
import pytest

from llmtasks import errors
from llmtasks.messages import StatedLimits
from llmtasks.providers.failures import BY_STATUS, RAISED, STATUS, Origin, _rule, call_id, translate

ORIGIN = Origin(provider="somewhere", model="small-1", secret="sk-verysecret")
REQUEST = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions")

#: SDK parts that a chat completion never runs; their errors cannot come out of one.
NOT_IN_A_CALL = ("lib._old_api", "lib.tools", "lib._extras", "_extras")


def tree(*roots: type[BaseException]) -> Iterator[type[BaseException]]:
    for root in roots:
        yield root
        yield from tree(*root.__subclasses__())


def load_lazy_parts() -> None:
    for part in ("openai._response", "openai.lib.azure", "anthropic._response", "httpx2._sse"):
        importlib.import_module(part)


def foreign_classes() -> list[type[BaseException]]:
    load_lazy_parts()
    roots = (
        openai.OpenAIError,
        anthropic.AnthropicError,
        httpx2.HTTPError,
        httpx2.InvalidURL,
        httpx2.CookieConflict,
        httpx2.StreamError,
        aiohttp.ClientError,
    )
    found = {
        cls
        for cls in tree(*roots)
        if cls.__module__.partition(".")[0] in {"openai", "anthropic", "httpx2", "aiohttp"}
        and not cls.__module__.partition(".")[2].startswith(NOT_IN_A_CALL)
        and not cls.__name__.startswith("_")
    }
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


@pytest.mark.parametrize("cls", foreign_classes(), ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_foreign_error_class_has_its_place_in_the_table(cls: type[BaseException]) -> None:
    if issubclass(cls, openai.APIStatusError | anthropic.APIStatusError):
        assert _rule(cls) is BY_STATUS
    else:
        assert (cls.__module__.partition(".")[0], cls.__name__) in RAISED


def test_every_public_exception_of_the_sdks_is_enumerated() -> None:
    enumerated = set(foreign_classes())
    for exceptions in (openai._exceptions, anthropic._exceptions, httpx2._exceptions):
        for name in exceptions.__all__:
            cls = getattr(exceptions, name)
            if cls is not openai.InvalidWebhookSignatureError:  # a ValueError of the webhooks
                assert cls in enumerated, name


def test_the_table_names_no_class_that_does_not_exist() -> None:
    load_lazy_parts()
    importlib.import_module("anthropic.lib.foundry")
    known = {(cls.__module__.partition(".")[0], cls.__name__) for cls in tree(BaseException)}
    assert set(RAISED) <= known


@pytest.mark.parametrize("module", ["openai", "anthropic"])
def test_every_status_an_sdk_has_a_class_for_means_something(module: str) -> None:
    sdk = sys.modules[module]
    for cls in tree(sdk.APIStatusError):
        status = cls.__dict__.get("status_code")
        if isinstance(status, int):
            assert translate(status_error(sdk, status), ORIGIN, 0.0) is not None


def status_error(
    sdk: object, status: int, body: object = None, headers: dict[str, str] | None = None
) -> Exception:
    """What the SDK makes of a response, by its own code."""
    response = httpx2.Response(
        status,
        headers=headers,
        content=body if isinstance(body, bytes) else json.dumps(body).encode(),
        request=REQUEST,
    )
    client = (
        openai.OpenAI(api_key="k", base_url="http://127.0.0.1")
        if sdk is openai
        else anthropic.Anthropic(api_key="k", base_url="http://127.0.0.1")
    )
    try:
        return client._make_status_error_from_response(response)
    finally:
        client.close()


def refused() -> Exception:
    key = aiohttp.client_reqrep.ConnectionKey("127.0.0.1", 1, False, True, None, None, None)
    return aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "refused"))


def caused(outer: Exception, *causes: Exception) -> Exception:
    for link, cause in zip((outer, *causes), causes, strict=False):
        link.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "maybe_paid"),
    [
        # openai renames a connection cut by the server to a time-out; the innermost link is right
        (
            caused(
                openai.APITimeoutError(REQUEST),
                httpx2.ConnectTimeout(""),
                aiohttp.ServerDisconnectedError(),
            ),
            errors.ProviderUnavailable,
            True,
        ),
        (
            caused(
                openai.APIConnectionError(request=REQUEST),
                httpx2.ConnectError(""),
                refused(),
                ConnectionRefusedError(111, "refused"),
            ),
            errors.ProviderUnavailable,
            False,
        ),
        (
            caused(anthropic.APIConnectionError(request=REQUEST), ConnectionResetError(104, "x")),
            errors.ProviderUnavailable,
            True,
        ),
        (
            caused(anthropic.APITimeoutError(REQUEST), httpx2.ReadTimeout("")),
            errors.ProviderTimeout,
            True,
        ),
        (aiohttp.ConnectionTimeoutError(), errors.ProviderTimeout, False),
        (aiohttp.ClientPayloadError(), errors.ProviderUnavailable, True),
        (TimeoutError(), errors.ProviderTimeout, True),
        (ConnectionRefusedError(), errors.ProviderUnavailable, False),
        (ConnectionResetError(), errors.ProviderUnavailable, True),
        (socket.gaierror(), errors.ProviderUnavailable, False),
        (ssl.SSLError(), errors.ProviderUnavailable, True),
        (OSError(), errors.ProviderUnavailable, True),
        (msgspec.DecodeError(), errors.InvalidResponse, True),
        (msgspec.ValidationError(), errors.InvalidResponse, True),
        (json.JSONDecodeError("", "", 0), errors.InvalidResponse, True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, ""), errors.InvalidResponse, True),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, ""), errors.RequestRejected, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_kind_of_failure_and_whether_it_may_cost(
    error: Exception, kind: type[errors.ProviderError], *, maybe_paid: bool
) -> None:
    failure = translate(error, ORIGIN, 0.0)
    assert type(failure) is kind
    assert failure.maybe_paid is maybe_paid
    assert failure.provider == "somewhere"


@pytest.mark.parametrize("error", [KeyError("x"), TypeError(), asyncio.CancelledError()])
def test_a_fault_of_our_own_is_not_blamed_on_the_provider(error: BaseException) -> None:
    assert translate(error, ORIGIN, 0.0) is None


def openai_body(**error: object) -> dict[str, object]:
    return {"error": {"message": "", "type": None, "param": None, "code": None, **error}}


def anthropic_body(kind: str, message: str = "", **more: object) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message, **more}}


QUOTA, LIMIT = errors.QuotaExhausted, errors.RateLimitError
WINDOW, REJECTED = errors.ContextWindowExceeded, errors.RequestRejected
DOWN, DENIED, SLOW = (
    errors.ProviderUnavailable,
    errors.AuthenticationFailed,
    errors.ProviderTimeout,
)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (307, None, REJECTED),
        (400, openai_body(code="context_length_exceeded"), WINDOW),
        (400, {"error": {"code": 400, "type": "exceed_context_size_error", "message": ""}}, WINDOW),
        (400, openai_body(message="request exceeds the available context size"), WINDOW),
        (
            400,
            {
                "object": "error",
                "type": "BadRequestError",
                "code": 400,
                "message": "This model's maximum context length is 4096 tokens. However,",
            },
            WINDOW,
        ),
        (400, {"error": "inputs: context length exceeded"}, WINDOW),
        (400, openai_body(code="unsupported_value", param="temperature"), REJECTED),
        (400, b"<html>bad request</html>", REJECTED),
        (401, openai_body(code="invalid_api_key"), DENIED),
        (402, openai_body(message="Insufficient Balance"), QUOTA),
        (403, openai_body(code="unsupported_country_region_territory"), DENIED),
        (403, openai_body(code="billing_not_active"), QUOTA),
        (404, openai_body(code="model_not_found"), REJECTED),
        (405, None, REJECTED),
        (408, None, SLOW),
        (409, None, DOWN),
        (413, None, REJECTED),
        (418, None, REJECTED),
        (422, None, REJECTED),
        (425, None, DOWN),
        (429, openai_body(type="requests", code="rate_limit_exceeded"), LIMIT),
        (429, openai_body(type="insufficient_quota", code="insufficient_quota"), QUOTA),
        (429, openai_body(code="billing_hard_limit_reached"), QUOTA),
        (429, openai_body(message="You exceeded your current quota, please check"), LIMIT),
        (
            429,
            openai_body(type="tokens", message="Request too large for gpt-x on tokens per min"),
            REJECTED,
        ),
        (429, b"slow down", LIMIT),
        (500, openai_body(type="server_error"), DOWN),
        (500, openai_body(message="the context size has been exceeded"), DOWN),
        (501, None, REJECTED),
        (502, b"<html>", DOWN),
        (503, None, DOWN),
        (504, None, DOWN),
        (529, None, DOWN),
        (599, None, DOWN),
    ],
)
def test_openai_statuses_and_codes(
    status: int, body: object, kind: type[errors.ProviderError]
) -> None:
    failure = translate(status_error(openai, status, body), ORIGIN, 0.0)
    assert type(failure) is kind
    assert f"HTTP {status}" in str(failure)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, anthropic_body("invalid_request_error", "prompt is too long: 9 tokens > 8"), WINDOW),
        (
            400,
            anthropic_body(
                "invalid_request_error", "input length and `max_tokens` exceed context limit"
            ),
            WINDOW,
        ),
        (400, anthropic_body("invalid_request_error", "Your credit balance is too low"), QUOTA),
        (400, anthropic_body("invalid_request_error", "`temperature` is deprecated"), REJECTED),
        (401, anthropic_body("authentication_error"), DENIED),
        (402, anthropic_body("billing_error"), QUOTA),
        (
            403,
            anthropic_body("permission_error", details={"error_code": "organization_on_hold"}),
            DENIED,
        ),
        (404, anthropic_body("not_found_error", "model: small-1"), REJECTED),
        (413, anthropic_body("request_too_large"), REJECTED),
        (429, anthropic_body("rate_limit_error"), LIMIT),
        (
            429,
            anthropic_body(
                "rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}
            ),
            QUOTA,
        ),
        (
            429,
            anthropic_body("rate_limit_error", details={"error_code": "ramp_limit_exceeded"}),
            LIMIT,
        ),
        (500, anthropic_body("api_error"), DOWN),
        (504, anthropic_body("timeout_error"), DOWN),
        (529, anthropic_body("overloaded_error"), DOWN),
    ],
)
def test_anthropic_statuses_and_codes(
    status: int, body: object, kind: type[errors.ProviderError]
) -> None:
    failure = translate(status_error(anthropic, status, body), ORIGIN, 0.0)
    assert type(failure) is kind
    assert f"HTTP {status}" in str(failure)


@pytest.mark.parametrize("status", sorted(STATUS))
def test_an_error_answer_costs_nothing_unless_a_gateway_lost_the_model(status: int) -> None:
    failure = translate(status_error(openai, status), ORIGIN, 0.0)
    assert failure is not None
    assert failure.maybe_paid is (status in {499, 502, 504, 520, 524})


def test_a_rate_limit_carries_its_wait_and_an_outage_only_what_was_asked_for() -> None:
    hints = {"x-ratelimit-reset-tokens": "6s"}
    limited = translate(status_error(openai, 429, headers=hints), ORIGIN, 0.0)
    down = translate(status_error(openai, 503, headers=hints), ORIGIN, 0.0)
    asked = translate(status_error(anthropic, 529, headers={"retry-after": "9"}), ORIGIN, 0.0)
    assert isinstance(limited, errors.RateLimitError)
    assert limited.retry_after == 6.0
    assert isinstance(down, errors.ProviderUnavailable)
    assert down.retry_after is None
    assert isinstance(asked, errors.ProviderUnavailable)
    assert asked.retry_after == 9.0


def test_a_rate_limit_carries_the_limits_that_the_provider_states() -> None:
    headers = {"x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "0"}
    limited = translate(status_error(openai, 429, headers=headers), ORIGIN, 0.0)
    assert isinstance(limited, errors.RateLimitError)
    assert limited.limits == StatedLimits(requests=500)


def test_an_unknown_model_is_named() -> None:
    failure = translate(status_error(openai, 404), ORIGIN, 0.0)
    assert "'small-1'" in str(failure)


def test_a_message_has_the_evidence_that_support_asks_for() -> None:
    error = status_error(
        openai,
        400,
        openai_body(type="invalid_request_error", code="unsupported_value", param="temperature"),
        {"x-request-id": "req_8f3"},
    )
    assert str(translate(error, ORIGIN, 0.0)) == (
        "somewhere: rejects the request: it does not take this temperature"
        " (HTTP 400, invalid_request_error, unsupported_value, param temperature, request req_8f3)"
    )


@pytest.mark.parametrize("sdk", [openai, anthropic], ids=lambda sdk: sdk.__name__)
@pytest.mark.parametrize("field", ["message", "type", "code", "param"])
@pytest.mark.parametrize("said", ["The patient, Ms Doe, was seen on", "sk-verysecret"])
def test_neither_the_document_nor_the_key_gets_into_a_message(
    sdk: object, field: str, said: str
) -> None:
    body = openai_body(**{field: said})
    for status in (400, 401, 404, 429, 500):
        failure = translate(status_error(sdk, status, body, {"x-request-id": said}), ORIGIN, 0.0)
        assert said not in str(failure)
        assert said not in repr(failure)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("chatcmpl-9.A_z", True),
        ("sk-verysecret", False),
        ("req_sk-verysecret_1", False),
        ("a text of a document", False),
        ("x" * 81, False),
        ("", False),
        (None, False),
    ],
)
def test_a_providers_name_of_a_call_is_a_word_and_not_the_key(value, kept):
    assert call_id(value, ORIGIN) == (value if kept else None)
