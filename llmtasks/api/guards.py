"""What is refused before anything reads it: bodies that are too large, and pages of other sites."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmtasks.api.errors import RefusedError, answer, refusal
from llmtasks.settings import LOOPBACK

#: Seconds between two pieces of a body.
BODY_S: Final = 30.0
#: Seconds in which a body that is refused is let come, and dropped: who still sends when the connection is
#: closed is reset, and does not read why.
_DROP_S: Final = 2.0
_CLOSE: Final = {"Connection": "close"}  # what is left of the body is not read


class BodyLimit:
    """Ends a request whose body grows beyond so many bytes, whatever it says of itself, or does not go on."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is not too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self._most:
            await _dropped(receive)
            await refusal(self._too_large())(scope, receive, send)
            return
        began, whole, came = False, False, 0

        async def counted() -> Message:
            nonlocal came, whole
            if whole or began:  # what is awaited now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout(BODY_S):
                    message = await receive()
            except TimeoutError:
                why = f"nothing of the body came for {BODY_S:.0f} s"
                raise RefusedError(408, "Timeout", why, _CLOSE) from None
            came += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if came > self._most:
                await _dropped(receive)
                raise self._too_large()
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        await self._app(scope, counted, noted)

    def _too_large(self) -> RefusedError:
        return RefusedError(413, "TooLarge", f"a request may have {self._most:,} bytes", _CLOSE)


async def _dropped(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DROP_S):
            while (await receive()).get("more_body"):
                pass


class SameSite:
    """Refuses what a page of another site sends, and, where nobody has a token, other names of this machine.

    A browser on this machine reaches a loopback server too, for whatever page it shows.
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what comes from where it may."""
        fault = self._fault(Headers(scope=scope)) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await answer(403, "Forbidden", fault)(scope, receive, send)

    def _fault(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback_only and _name(f"//{host}") not in LOOPBACK:
            return "without tokens this server answers to the names of loopback only"
        if origin is not None and urlsplit_or_none(origin) != host:
            return "pages of other sites may not use this server"
        return None


def _name(url: str) -> Any:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def urlsplit_or_none(origin: str) -> str | None:
    """Host and port of an origin."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
