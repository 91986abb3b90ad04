"""Whether a provider's endpoint answers and takes the key: one free call that lists its models.

Over plain aiohttp, because the SDKs take a second to import.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec

from llmtasks import settings
from llmtasks.providers.base import OFFICIAL_URLS

_OK: Final = 200
#: Anthropic lists twenty models unless asked for more.
_ALL: Final = "limit=1000"
_API_VERSION: Final = "2023-06-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What came of the call: an HTTP status, or the reason why there is none.

    `models` are the names it lists; None when the answer is no list.
    """

    status: int | None = None
    models: frozenset[str] | None = None
    failure: str | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def probe(provider: settings.Provider, key: str | None, timeout_s: float) -> Reach:
    """Ask a provider, for `timeout_s` at most; a name server that hangs can hold the return up longer."""
    return asyncio.run(_probe(provider, key, timeout_s))


async def _probe(provider: settings.Provider, key: str | None, timeout_s: float) -> Reach:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            # The environment's proxies, as the SDKs use them.
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            # No redirects: they would carry the key to another host.
            session.get(
                _url(provider), headers=_headers(provider, key), allow_redirects=False
            ) as response,
        ):
            body = await response.read() if response.status == _OK else b""
            return Reach(status=response.status, models=_models(body))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return Reach(failure=_why(error))


def _url(provider: settings.Provider) -> str:
    base = (provider.base_url or OFFICIAL_URLS[provider.kind]).rstrip("/")
    if provider.kind == "anthropic":
        return f"{base.removesuffix('/v1')}/v1/models?{_ALL}"
    return f"{base}/models"


def _headers(provider: settings.Provider, key: str | None) -> dict[str, str]:
    if provider.kind == "anthropic":
        return {"anthropic-version": _API_VERSION, **({"x-api-key": key} if key else {})}
    return {"Authorization": f"Bearer {key}"} if key else {}


def _models(body: bytes) -> frozenset[str] | None:
    try:
        return frozenset(model.id for model in msgspec.json.decode(body, type=_Models).data)
    except msgspec.DecodeError:
        return None


def _why(error: Exception) -> str:
    """The reason in a few words, which never quote a header or a URL."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorDNSError():
            return f"the name {error.host} cannot be resolved"
        case aiohttp.ClientConnectorCertificateError():
            return f"the certificate of {error.host} is not trusted"
        case aiohttp.ClientConnectorSSLError():
            return f"no TLS with {error.host}:{error.port}"
        case aiohttp.ClientConnectorError():
            # asyncio's own text quotes the address instead of the reason.
            number = error.os_error.errno
            return os.strerror(number).lower() if number else type(error.os_error).__name__
        case aiohttp.ServerDisconnectedError():
            return "the connection was closed without an answer"
        case ValueError() if not isinstance(error, aiohttp.ClientError):
            return "the key cannot be sent in a header"
    return type(error).__name__
