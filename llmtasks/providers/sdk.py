"""What the SDK-backed kinds share: the deadline, the translated errors, and the HTTP client below.

The SDKs are used by their `client.post(..., cast_to=httpx2.Response)`: headers, key, connection and
typed errors are theirs, while the answer is decoded here, strictly, to the few fields we read. Over
the aiohttp transport that takes a third of the CPU of `create()` over the default one, whose
connection pool is scanned at every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypedDict, TypeVar, cast

import httpx2
import msgspec

from llmtasks import settings
from llmtasks.errors import ConfigurationError
from llmtasks.messages import Completion, FinishReason, Request, Usage
from llmtasks.providers.base import OnText
from llmtasks.providers.failures import (
    Origin,
    UnreadableAnswerError,
    call_id,
    request_id,
    translate,
)
from llmtasks.providers.stated import stated_limits

if TYPE_CHECKING:
    import anthropic
    import openai

#: Seconds for TCP and TLS. A call that dies here cost nothing, so it is told from a slow answer.
CONNECT_S: Final = 10.0
#: Seconds an idle connection is kept for the next call.
KEEPALIVE_S: Final = 60.0
#: Seconds for the end of a stream after its last event: it comes in the same packet, or the connection goes.
DRAIN_S: Final = 0.1
#: Sent where a server wants no key. The SDKs would else take one from the environment.
NO_KEY: Final = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a kind reads from a response body. `id` is the body's own name for the call."""

    text: str
    finish_reason: FinishReason
    usage: Usage | None
    id: str | None


class Reader(Protocol):
    """Reads one streamed answer, event by event."""

    def take(self, data: str) -> str:
        """The text that an event adds to the answer; mostly some letters, often none.

        Raises:
            UnreadableAnswerError: the event is not of the API's form.
            BrokenOffError: the event says that the provider gives up.
        """

    @property
    def ended(self) -> bool:
        """Whether the API said that nothing follows."""

    def answer(self) -> Answer:
        """What the events made.

        Raises:
            UnreadableAnswerError: they do not say how the answer ended, so it may not be whole.
        """


class SDKProvider(ABC):
    """A provider behind an official SDK. A kind says how to ask and how to read the answer."""

    _path: ClassVar[str]
    #: What a request says besides, to have its answer streamed.
    _streamed: ClassVar[Mapping[str, Any]] = {"stream": True}

    def __init__(
        self,
        provider: settings.Provider,
        api_key: str | None,
        client: openai.AsyncOpenAI | anthropic.AsyncAnthropic,
    ) -> None:
        self._client = client
        self._timeout_s = provider.timeout_s
        self._origin = Origin(provider=provider.name, model=provider.model, secret=api_key or "")

    @property
    def name(self) -> str:
        """Its unique name in the settings."""
        return self._origin.provider

    @property
    def model(self) -> str:
        """The model it was configured with."""
        return self._origin.model

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        """Ask once, within `timeout_s` from the connection to the last byte of the answer.

        With `on_text` the answer is streamed: its pieces go there as they come, and it is returned whole.

        Raises:
            ProviderError: There is no answer; the subclass says why, `maybe_paid` whether it may
                cost. What `on_text` was given is void.
        """
        heard = _Heard(on_text)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                if on_text is None:
                    answer, headers = await self._whole(request)
                else:
                    answer, headers = await self._stream(request, heard, limit)
        except Exception as error:
            failure = translate(error, self._origin, time.time())
            if failure is None:
                raise
        else:
            return Completion(
                text=answer.text,
                finish_reason=answer.finish_reason,
                provider=self.name,
                model=self.model,
                usage=answer.usage,
                latency_s=time.monotonic() - started,
                request_id=request_id(headers, self._origin) or call_id(answer.id, self._origin),
                first_text_s=None if heard.first_at is None else heard.first_at - started,
                limits=stated_limits(headers),
            )
        # Not in the handler: the SDK's error quotes the response, which may quote the document, and
        # must not be printed as our error's context.
        raise failure

    async def _whole(self, request: Request) -> tuple[Answer, Mapping[str, str]]:
        response = await self._client.post(
            self._path, body=self._body(request), cast_to=httpx2.Response
        )
        return self._read(response.content), response.headers

    async def _stream(
        self, request: Request, heard: _Heard, limit: asyncio.Timeout
    ) -> tuple[Answer, Mapping[str, str]]:
        response = await self._client.post(
            self._path,
            body={**self._body(request), **self._streamed},
            cast_to=httpx2.Response,
            stream=True,
        )
        try:
            reader = self._reader()
            found = cast(
                "AsyncGenerator[httpx2.ServerSentEvent]", aiter(httpx2.EventSource(response))
            )
            async with contextlib.aclosing(found) as events:
                async for event in events:
                    if text := reader.take(event.data):
                        heard(text)
                    if reader.ended:
                        break
                answer = reader.answer()
                limit.reschedule(None)  # it is whole, and no deadline may take it back
                await _drained(events)
        finally:
            await response.aclose()
        return answer, response.headers

    async def aclose(self) -> None:
        """Close the connections; the provider cannot be used afterwards."""
        await self._client.close()

    @abstractmethod
    def _body(self, request: Request) -> dict[str, Any]:
        """The request in the API's own form."""

    @abstractmethod
    def _read(self, content: bytes) -> Answer:
        """The answer in a response body.

        Raises:
            UnreadableAnswerError: It is not of the API's form, or does not say how it ended.
        """

    @abstractmethod
    def _reader(self) -> Reader:
        """For one streamed answer."""


class _Heard:
    """Passes pieces on, and notes when the first one came."""

    def __init__(self, on_text: OnText | None) -> None:
        self._on_text = on_text
        self.first_at: float | None = None

    def __call__(self, text: str) -> None:
        if self.first_at is None:
            self.first_at = time.monotonic()
        if self._on_text is not None:
            self._on_text(text)


async def _drained(events: AsyncIterator[object]) -> None:
    """Read what is left after the last event, so that the connection can be kept; not for long."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError, OSError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in events:
                pass


class HTTPOptions(TypedDict):
    """Arguments of the SDKs' `DefaultAioHttpClient`."""

    limits: httpx2.Limits
    timeout: httpx2.Timeout
    follow_redirects: bool


def http_options(provider: settings.Provider) -> HTTPOptions:
    """How we want our connections.

    As many as there are calls (admission limits those; aiohttp reads 0 as "no limit" and None as
    100), no time-out but for connecting (`complete` has the one deadline), and no redirects: they
    would carry key and document to another host.
    """
    return HTTPOptions(
        limits=httpx2.Limits(max_connections=0, keepalive_expiry=KEEPALIVE_S),
        timeout=httpx2.Timeout(None, connect=min(CONNECT_S, provider.timeout_s)),
        follow_redirects=False,
    )


def usable_key(provider: settings.Provider, api_key: str | None) -> str:
    """The key as it goes into a header.

    Raises:
        ConfigurationError: It cannot: it holds a line break or a letter outside ASCII.
    """
    key = NO_KEY if api_key is None else api_key
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            f"providers.{provider.name}.api_key_env: the value of {provider.api_key_env} is not an"
            " API key: it is empty, or holds blanks or letters outside ASCII"
        )
    return key


def never_log_bodies(sdk: str) -> None:
    """Keep the SDK from logging request bodies (DEBUG), and httpx2 a line per call (INFO)."""
    logging.getLogger(sdk).setLevel(logging.INFO)
    logging.getLogger("httpx2").setLevel(logging.WARNING)


_T = TypeVar("_T")


def decode(content: bytes | msgspec.Raw, as_type: type[_T]) -> _T:
    """Decode JSON strictly.

    Raises:
        UnreadableAnswerError: It is not JSON, or not of this form; msgspec quotes no values.
    """
    try:
        return msgspec.json.decode(content, type=as_type)
    except msgspec.DecodeError as error:
        reason = str(error)
    raise UnreadableAnswerError(f"the answer is not of its protocol: {reason}")


def whole(text: str, reason: FinishReason) -> str:
    """The answer's text, which only a cut or refused answer may leave empty.

    Raises:
        UnreadableAnswerError: There is no text, and nothing explains that.
    """
    if reason is FinishReason.STOP and not text.strip():
        raise UnreadableAnswerError("the answer is empty")
    return text


def finish(reasons: dict[str, FinishReason], said: str | None) -> FinishReason:
    """Our word for the API's finish reason.

    Raises:
        UnreadableAnswerError: It is missing or unknown, so the answer may not be whole.
    """
    if said is None:
        raise UnreadableAnswerError("the answer does not say how it ended")
    if said not in reasons:
        word = said if said.isidentifier() and len(said) <= 40 else "?"  # noqa: PLR2004 - a word
        raise UnreadableAnswerError(f"the answer ended in an unknown way ({word})")
    return reasons[said]
