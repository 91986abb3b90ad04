"""What is refused before anything reads it: bodies that are too large, and pages of other sites."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmtasks.api.errors import answer
from llmtasks.settings import LOOPBACK


class _TooLargeError(Exception):
    """More came than may."""


class BodyLimit:
    """Ends a request whose body grows beyond so many bytes, whatever it says of itself."""

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
            await self._refuse(scope, receive, send)
            return
        began, came = False, 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLargeError:
            if not began:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"a request may have {self._most:,} bytes"
        refused = answer(413, "TooLarge", message, {"Connection": "close"})
        await refused(scope, receive, send)


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
