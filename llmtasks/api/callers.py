"""Who asks. A bearer token names a tenant; without any token configured everybody here is `default`."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from llmtasks.api.errors import RefusedError
from llmtasks.settings import Settings

_BEARER = HTTPBearer(
    auto_error=False, description="A token of `[api] tokens`; it says whose documents these are."
)


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
        raise RefusedError(
            401,
            "Unauthorized",
            "a token is needed: Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )
    return Caller(tenant)


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
    if not hmac.compare_digest(_basic(request.headers.get("authorization", "")), wanted):
        raise RefusedError(
            401,
            "Unauthorized",
            "user and password of [metrics] are needed",
            {"WWW-Authenticate": 'Basic realm="metrics"'},
        )


def _basic(header: str) -> bytes:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


TheCaller = Annotated[Caller, Depends(caller)]
