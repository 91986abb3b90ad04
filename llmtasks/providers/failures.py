"""Every error of the SDKs and of the transport below them, translated into ours.

Two tables: `RAISED` says what a foreign exception class means, `STATUS` what an HTTP status means.
A test enumerates the foreign class trees and fails when one is missing here. Classes are named, not
imported: an SDK that is not configured is not loaded.

Messages are made of our own words, the status, and the provider's error *codes*. Its free text is
read for a few known phrases and then dropped: some providers quote the prompt in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from llmtasks.errors import (
    AuthenticationFailed,
    ContextWindowExceeded,
    InvalidResponse,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimitError,
    RequestRejected,
    TransientProviderError,
)
from llmtasks.providers.retry_after import asked_wait, retry_after
from llmtasks.providers.stated import stated_limits


class UnreadableAnswerError(ValueError):
    """A whole HTTP answer that is not what the API promises. Its message holds our words only."""


class BrokenOffError(ValueError):
    """A streamed answer that ended in an error of the provider's. Its message holds our words only."""


class Rule(NamedTuple):
    """What a foreign error becomes; `maybe_paid`: the provider may have done the work anyway."""

    error: type[ProviderError]
    what: str
    maybe_paid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a call went: for messages, and `secret` for what must never be in one."""

    provider: str
    model: str
    secret: str


#: In `RAISED`: the response's status decides, not the class.
BY_STATUS: Final = Rule(ProviderError, "")

_UNREACHABLE = Rule(ProviderUnavailable, "cannot be reached")
_CUT = Rule(ProviderUnavailable, "the connection was cut", maybe_paid=True)
_SLOW = Rule(ProviderTimeout, "no answer before the deadline", maybe_paid=True)
_NO_CONNECTION = Rule(ProviderTimeout, "no connection before the deadline")
_NOT_PROTOCOL = Rule(InvalidResponse, "the answer is not of its protocol", maybe_paid=True)
_NOT_SENT = Rule(RequestRejected, "the request cannot be sent")
_NO_KEY = Rule(AuthenticationFailed, "the SDK found no usable credentials")

#: (package, class) -> meaning. A class that is missing means what its nearest listed base means.
RAISED: Final[Mapping[tuple[str, str], Rule]] = {
    # openai. All status errors derive from the first; their class repeats the status or a code.
    ("openai", "APIStatusError"): BY_STATUS,
    ("openai", "APIConnectionError"): _CUT,
    ("openai", "APITimeoutError"): _SLOW,
    ("openai", "APIResponseValidationError"): _NOT_PROTOCOL,
    ("openai", "StreamAlreadyConsumed"): _NOT_PROTOCOL,
    ("openai", "LengthFinishReasonError"): _NOT_PROTOCOL,
    ("openai", "ContentFilterFinishReasonError"): _NOT_PROTOCOL,
    ("openai", "WebSocketConnectionClosedError"): _CUT,
    ("openai", "WebSocketQueueFullError"): _NOT_SENT,
    ("openai", "SubjectTokenProviderError"): _NO_KEY,
    ("openai", "MutuallyExclusiveAuthError"): _NO_KEY,
    ("openai", "APIError"): _CUT,
    ("openai", "OpenAIError"): _NOT_SENT,
    # anthropic, likewise
    ("anthropic", "APIStatusError"): BY_STATUS,
    ("anthropic", "APIConnectionError"): _CUT,
    ("anthropic", "APITimeoutError"): _SLOW,
    ("anthropic", "APIResponseValidationError"): _NOT_PROTOCOL,
    ("anthropic", "APIWebhookValidationError"): _NOT_PROTOCOL,
    ("anthropic", "StreamAlreadyConsumed"): _NOT_PROTOCOL,
    ("anthropic", "RetryableError"): _CUT,
    ("anthropic", "CredentialsError"): _NO_KEY,
    ("anthropic", "IdentityTokenFileError"): _NO_KEY,
    ("anthropic", "WorkloadIdentityError"): _NO_KEY,
    ("anthropic", "MutuallyExclusiveAuthError"): _NO_KEY,
    ("anthropic", "APIError"): _CUT,
    ("anthropic", "AnthropicError"): _NOT_SENT,
    # httpx2, between the SDKs and the transport
    ("httpx2", "ConnectError"): _UNREACHABLE,
    ("httpx2", "ProxyError"): _UNREACHABLE,
    ("httpx2", "ConnectTimeout"): _NO_CONNECTION,
    ("httpx2", "PoolTimeout"): _NO_CONNECTION,
    ("httpx2", "ReadTimeout"): _SLOW,
    ("httpx2", "WriteTimeout"): _SLOW,
    ("httpx2", "TimeoutException"): _SLOW,
    ("httpx2", "ReadError"): _CUT,
    ("httpx2", "WriteError"): _CUT,
    ("httpx2", "CloseError"): _CUT,
    ("httpx2", "NetworkError"): _CUT,
    ("httpx2", "RemoteProtocolError"): _CUT,
    ("httpx2", "ProtocolError"): _CUT,
    ("httpx2", "SSEError"): _NOT_PROTOCOL,
    ("httpx2", "LocalProtocolError"): _NOT_SENT,
    ("httpx2", "UnsupportedProtocol"): _NOT_SENT,
    ("httpx2", "InvalidURL"): _NOT_SENT,
    ("httpx2", "CookieConflict"): _NOT_SENT,
    ("httpx2", "TooManyRedirects"): Rule(RequestRejected, "redirects in circles"),
    ("httpx2", "DecodingError"): _NOT_PROTOCOL,
    ("httpx2", "HTTPStatusError"): BY_STATUS,
    ("httpx2", "TransportError"): _CUT,
    ("httpx2", "RequestError"): _CUT,
    ("httpx2", "HTTPError"): _CUT,
    ("httpx2", "StreamError"): _NOT_PROTOCOL,
    ("httpx2", "StreamConsumed"): _NOT_PROTOCOL,
    ("httpx2", "StreamClosed"): _NOT_PROTOCOL,
    ("httpx2", "ResponseNotRead"): _NOT_PROTOCOL,
    ("httpx2", "RequestNotRead"): _NOT_SENT,
    # aiohttp, the transport
    ("aiohttp", "ClientConnectorError"): _UNREACHABLE,
    ("aiohttp", "ClientConnectorDNSError"): _UNREACHABLE,
    ("aiohttp", "ClientConnectorSSLError"): _UNREACHABLE,
    ("aiohttp", "ClientConnectorCertificateError"): _UNREACHABLE,
    ("aiohttp", "ClientSSLError"): _UNREACHABLE,
    ("aiohttp", "ClientProxyConnectionError"): _UNREACHABLE,
    ("aiohttp", "ClientHttpProxyError"): _UNREACHABLE,
    ("aiohttp", "UnixClientConnectorError"): _UNREACHABLE,
    ("aiohttp", "ServerFingerprintMismatch"): _UNREACHABLE,
    ("aiohttp", "ConnectionTimeoutError"): _NO_CONNECTION,
    ("aiohttp", "SocketTimeoutError"): _SLOW,
    ("aiohttp", "ServerTimeoutError"): _SLOW,
    ("aiohttp", "ServerDisconnectedError"): _CUT,
    ("aiohttp", "ServerConnectionError"): _CUT,
    ("aiohttp", "ClientConnectionResetError"): _CUT,
    ("aiohttp", "ClientConnectionError"): _CUT,
    ("aiohttp", "ClientOSError"): _CUT,
    ("aiohttp", "ClientPayloadError"): _CUT,
    ("aiohttp", "UploadAbortedError"): _CUT,
    ("aiohttp", "ClientResponseError"): _NOT_PROTOCOL,
    ("aiohttp", "ContentTypeError"): _NOT_PROTOCOL,
    ("aiohttp", "WSServerHandshakeError"): _NOT_PROTOCOL,
    ("aiohttp", "TooManyRedirects"): Rule(RequestRejected, "redirects in circles"),
    ("aiohttp", "InvalidURL"): _NOT_SENT,
    ("aiohttp", "InvalidUrlClientError"): _NOT_SENT,
    ("aiohttp", "InvalidUrlRedirectClientError"): _NOT_SENT,
    ("aiohttp", "NonHttpUrlClientError"): _NOT_SENT,
    ("aiohttp", "NonHttpUrlRedirectClientError"): _NOT_SENT,
    ("aiohttp", "RedirectClientError"): _NOT_SENT,
    ("aiohttp", "ClientError"): _CUT,
    # What reads the answer
    ("llmtasks", "UnreadableAnswerError"): _NOT_PROTOCOL,
    ("llmtasks", "BrokenOffError"): Rule(ProviderUnavailable, "broke off", maybe_paid=True),
    ("msgspec", "ValidationError"): _NOT_PROTOCOL,
    ("msgspec", "DecodeError"): _NOT_PROTOCOL,
    ("json", "JSONDecodeError"): _NOT_PROTOCOL,
    ("pydantic_core", "ValidationError"): _NOT_PROTOCOL,
    ("builtins", "UnicodeDecodeError"): _NOT_PROTOCOL,
    ("builtins", "UnicodeEncodeError"): Rule(RequestRejected, "the request is not valid Unicode"),
    # The system. `asyncio.TimeoutError` and `socket.timeout` are the built-in one.
    ("builtins", "TimeoutError"): _SLOW,
    ("builtins", "ConnectionRefusedError"): _UNREACHABLE,
    ("socket", "gaierror"): _UNREACHABLE,
    ("ssl", "SSLError"): _CUT,
    ("anyio", "EndOfStream"): _CUT,
    ("builtins", "EOFError"): _CUT,
    ("builtins", "OSError"): _CUT,
}

_STANDARD_LIBRARY: Final = frozenset({"builtins", "socket", "ssl", "json"})

_DOWN = Rule(ProviderUnavailable, "is in trouble")
#: A gateway lost sight of the model's server, which may have gone on.
_LOST = Rule(ProviderUnavailable, "its gateway lost the model's server", maybe_paid=True)
_DENIED = Rule(AuthenticationFailed, "the API key may not do this")

#: HTTP status -> meaning; the rest of a hundred by `_by_status`. Errors are not charged for.
STATUS: Final[Mapping[int, Rule]] = {
    401: Rule(AuthenticationFailed, "does not accept the API key"),
    402: Rule(QuotaExhausted, "wants to be paid first"),
    403: _DENIED,
    404: Rule(RequestRejected, "knows no such model, or no such path"),
    407: Rule(AuthenticationFailed, "the proxy wants credentials"),
    408: Rule(ProviderTimeout, "gave up waiting for the request"),
    409: Rule(ProviderUnavailable, "reports a conflict"),
    413: Rule(RequestRejected, "the request is too large"),
    425: Rule(ProviderUnavailable, "is not ready for the request"),
    429: Rule(RateLimitError, "rate limit reached"),
    499: _LOST,
    501: Rule(RequestRejected, "does not support this request"),
    502: _LOST,
    503: Rule(ProviderUnavailable, "is not available now"),
    504: _LOST,
    520: _LOST,
    522: _UNREACHABLE,
    524: _LOST,
    529: Rule(ProviderUnavailable, "is overloaded"),
}


def translate(error: BaseException, origin: Origin, now: float) -> ProviderError | None:
    """Our error for a foreign one; None for what is not in the table (a fault of our own).

    Raise it outside of the handler and without a cause: the foreign error may quote the document.

    Args:
        error: As the call raised it.
        origin: Where the call went.
        now: Epoch seconds, for dates in the response's headers.
    """
    found = _decisive(error)
    if found is None:
        return None
    link, rule = found
    if rule is BY_STATUS:
        return _of_status(_Fault.of(link, origin), origin, now)
    what = (
        str(link)
        if isinstance(link, UnreadableAnswerError | BrokenOffError)
        else f"{rule.what} ({type(link).__name__})"
    )
    return rule.error(
        f"{origin.provider}: {what}", provider=origin.provider, maybe_paid=rule.maybe_paid
    )


def _decisive(error: BaseException) -> tuple[BaseException, Rule] | None:
    """The link of the cause chain that knows best: the innermost of a library, else of Python.

    The SDKs and httpx2 rename what happened on the way up (openai calls a connection that the
    server cut a timeout); the innermost library has it right, and knows more than an `OSError`.
    """
    known = [(link, rule) for link in _chain(error) if (rule := _rule(type(link))) is not None]
    libraries = [found for found in known if _package(type(found[0])) not in _STANDARD_LIBRARY]
    found = libraries or known
    return found[-1] if found else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _rule(cls: type[BaseException]) -> Rule | None:
    for base in cls.__mro__:
        rule = RAISED.get((_package(base), base.__name__))
        if rule is not None:
            return rule
    return None


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    """An error response. `codes` are safe to show; `text` is the provider's own and is not."""

    status: int
    headers: Mapping[str, str]
    codes: tuple[str, ...]
    param: str | None
    text: str
    request_id: str | None

    @classmethod
    def of(cls, error: Any, origin: Origin) -> _Fault:
        """Read an SDK's status error, whose body may be anything.

        OpenAI says `{"error": {"code", "type", "param", "message"}}` (the SDK unwraps it), vLLM
        that without the `error`, Anthropic `{"error": {"type", "message", "details":
        {"error_code"}}}`.
        """
        body = getattr(error, "body", None)
        inner = body.get("error", body) if isinstance(body, dict) else body
        fields = inner if isinstance(inner, dict) else {"message": inner}
        details = fields.get("details")
        named = [fields.get("type"), fields.get("code")]
        if isinstance(details, dict):
            named.append(details.get("error_code"))
        codes = [code for name in named if (code := _safe(name, origin)) is not None]
        headers = error.response.headers
        message = fields.get("message")
        return cls(
            status=error.response.status_code,
            headers=headers,
            codes=tuple(dict.fromkeys(codes)),
            param=_safe(fields.get("param"), origin),
            text=message[:_READ_CHARS].lower() if isinstance(message, str) else "",
            request_id=request_id(headers, origin),
        )


#: Only the beginning of the provider's message is searched for phrases: quotes come later.
_READ_CHARS: Final = 400

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.\[\]-]{0,63}", re.ASCII)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}", re.ASCII)


def request_id(headers: Mapping[str, str], origin: Origin) -> str | None:
    """The provider's name for the call, which its support will ask for."""
    return call_id(headers.get("x-request-id") or headers.get("request-id"), origin)


def call_id(value: str | None, origin: Origin) -> str | None:
    """A name that a provider gives to a call, if it can be one: a word, and not the key."""
    if value is not None and _REQUEST_ID.fullmatch(value) and not _tells(value, origin):
        return value
    return None


def _safe(value: object, origin: Origin) -> str | None:
    """A code: one word of limited length and alphabet, and not the key."""
    if isinstance(value, str) and _CODE.fullmatch(value) and not _tells(value, origin):
        return value
    return None


def _tells(value: str, origin: Origin) -> bool:
    return bool(origin.secret) and (origin.secret in value or value in origin.secret)


_QUOTA_CODES: Final = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
        "insufficient_balance",
        "insufficient_credits",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "linked_organization_spend_limit_reached",
        "user_profile_billing_not_authorized",
        "user_profile_not_billable",
    }
)
#: Not "exceeded your current quota": Gemini says so of its limits per minute.
_QUOTA_PHRASES: Final = (
    "credit balance is too low",
    "specified api usage limits",
    "spend limit",
    "spending limit",
    "insufficient balance",
)
_QUOTA_STATUS: Final = frozenset({400, 402, 403, 429})

_WINDOW_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_WINDOW_PHRASES: Final = (
    "maximum context length",
    "context length",
    "context window",
    "context limit",
    "available context size",
    "prompt is too long",
    "input is too long",
    "maximum model length",
)
_WINDOW_STATUS: Final = frozenset({400, 413, 422})

#: What a rejected request may be about, in our words, by a word in `param` or in the message.
_HINTS: Final = (
    ("temperature", "it does not take this temperature"),
    ("max_completion_tokens", "it wants another limit on the answer's tokens"),
    ("max_tokens", "it wants another limit on the answer's tokens"),
    ("response_format", "it does not take the answer's schema"),
    ("output_config", "it does not take the answer's schema"),
    ("schema", "it does not take the answer's schema"),
)


def _of_status(fault: _Fault, origin: Origin, now: float) -> ProviderError:
    rule = _meaning(fault)
    what = rule.what
    if fault.status == 404:  # noqa: PLR2004 - the status is its own name
        what += f" (model {origin.model!r})"
    message = f"{origin.provider}: {what} ({_evidence(fault)})"
    if issubclass(rule.error, RateLimitError):
        return rule.error(
            message,
            provider=origin.provider,
            retry_after=retry_after(fault.headers, now),
            limits=stated_limits(fault.headers),
        )
    if issubclass(rule.error, TransientProviderError):
        return rule.error(
            message,
            provider=origin.provider,
            maybe_paid=rule.maybe_paid,
            retry_after=asked_wait(fault.headers, now),
        )
    return rule.error(message, provider=origin.provider, maybe_paid=rule.maybe_paid)


def _meaning(fault: _Fault) -> Rule:
    """What the codes say, then the known phrases, then the status."""
    codes = {code.lower() for code in fault.codes}
    if codes & _QUOTA_CODES or (
        fault.status in _QUOTA_STATUS and _any_in(_QUOTA_PHRASES, fault.text)
    ):
        return Rule(QuotaExhausted, "the account's budget is used up")
    if codes & _WINDOW_CODES or (
        fault.status in _WINDOW_STATUS and _any_in(_WINDOW_PHRASES, fault.text)
    ):
        return Rule(ContextWindowExceeded, "the request is longer than the model's context window")
    if fault.status in _ABOVE_LIMIT_STATUS and "request too large" in fault.text:
        return Rule(RequestRejected, "the request alone is above the account's limit per minute")
    return _by_status(fault)


#: OpenAI says 429, Groq 413, of a request that no waiting makes fit.
_ABOVE_LIMIT_STATUS: Final = frozenset({413, 429})


def _by_status(fault: _Fault) -> Rule:
    if fault.status in STATUS:
        return STATUS[fault.status]
    if fault.status >= 500:  # noqa: PLR2004 - the statuses' own boundaries
        return _DOWN
    if fault.status < 400:  # noqa: PLR2004
        return Rule(RequestRejected, "redirects elsewhere, which is not followed; mend base_url")
    for word, hint in _HINTS:
        if word in (fault.param or "") or word in fault.text:
            return Rule(RequestRejected, f"rejects the request: {hint}")
    return Rule(RequestRejected, "rejects the request")


def _any_in(phrases: tuple[str, ...], text: str) -> bool:
    return any(phrase in text for phrase in phrases)


def _evidence(fault: _Fault) -> str:
    parts = [f"HTTP {fault.status}", *fault.codes]
    if fault.param:
        parts.append(f"param {fault.param}")
    if fault.request_id:
        parts.append(f"request {fault.request_id}")
    return ", ".join(parts)
