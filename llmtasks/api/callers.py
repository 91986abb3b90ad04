"""Who asks. A bearer token names a tenant; without any token configured everybody here is `default`."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llmtasks import metrics
from llmtasks.api.errors import RefusedError, answer
from llmtasks.settings import Settings

_BEARER = HTTPBearer(
    auto_error=False, description="A token of `[api] tokens`; it says whose documents these are."
)


#: For everybody, or for the operator, who has a password of another kind.
_OPEN: Final = frozenset({"/health", "/ready", "/openapi.json", "/metrics", "/metrics/targets"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose documents, jobs and batches a request sees."""

    tenant: str


def tenant_of(token: str, tokens: Sequence[str]) -> str | None:
    """Whose token this is. Takes as long for a wrong one as for a right one."""
    found = None
    for pair in tokens:
        tenant, _, known = pair.partition(":")
        if hmac.compare_digest(token.encode(), known.encode()):
            found = tenant
    return found


def caller(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Caller:
    """The caller of a request.

    Raises:
        RefusedError: 401, a token is wanted.
    """
    settings: Settings = request.app.state.settings
    if not settings.api.tokens:
        return Caller("default")
    tenant = None if given is None else tenant_of(given.credentials, settings.api.tokens)
    if tenant is None:
        raise unauthorized()
    return Caller(tenant)


class TokenWanted:
    """Sends strangers away before anything of theirs is read. Who a caller is, `caller` finds."""

    def __init__(self, app: ASGIApp, tokens: Sequence[str]) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on whoever has a token, and what is for everybody."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or tenant_of(token.strip(), self._tokens) is None:
                refused = unauthorized()
                await answer(refused.status_code, refused.name, refused.detail, refused.headers)(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)


def unauthorized() -> RefusedError:
    """That a token is wanted."""
    wanted = "a token is needed: Authorization: Bearer TOKEN"
    return RefusedError(401, "Unauthorized", wanted, {"WWW-Authenticate": "Bearer"})


def operator(request: Request) -> None:
    """Whoever may read the metrics: who knows the password of `[metrics]`, where there is one.

    Raises:
        RefusedError: 401; 403 where tokens are wanted and no such password is set.
    """
    settings: Settings = request.app.state.settings
    if settings.metrics.password is None:
        if settings.api.tokens:
            raise RefusedError(403, "Forbidden", "set [metrics] password to read metrics here")
        return
    wanted = f"{settings.metrics.user}:{settings.metrics.password}".encode()
    if not hmac.compare_digest(
        metrics.credentials(request.headers.get("authorization", "")), wanted
    ):
        raise RefusedError(
            401,
            "Unauthorized",
            "user and password of [metrics] are needed",
            {"WWW-Authenticate": 'Basic realm="metrics"'},
        )


TheCaller = Annotated[Caller, Depends(caller)]
