"""Every error as a status and one shape, `{"error": {"type", "message"}}`. Nothing sent is quoted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llmtasks import errors, logs
from llmtasks.api.sse import ClientLeftError

_log = logs.get("api")

#: Seconds after which what is away may be back.
AGAIN_S: Final = 5

#: The first class of an error's that is listed says its status.
STATUS: Final[Mapping[type[Exception], int]] = {
    errors.UnknownJob: 404,
    errors.DocumentNotFound: 404,
    errors.DocumentTooLarge: 413,
    errors.DocumentError: 422,
    errors.BatchExists: 409,
    errors.UsageError: 422,
    errors.ContextWindowExceeded: 413,
    errors.ProviderTimeout: 504,
    errors.RateLimitError: 503,
    errors.QuotaExhausted: 503,
    errors.ProviderError: 502,
    errors.AttemptsExhausted: 502,
    errors.OutputError: 502,
    errors.JobError: 409,
    errors.StoreUnavailable: 503,
    errors.AdmissionUnavailable: 503,
    errors.NotNow: 503,
    errors.ConfigurationError: 500,
}


class RefusedError(Exception):
    """A request that is answered with this status, and goes no further."""

    def __init__(
        self, status: int, name: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.name, self.headers = status, name, headers


def answer(
    status: int, name: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the one shape."""
    body = {"error": {"type": name, "message": message}}
    return JSONResponse(body, status, headers=dict(headers or {}))


def status_of(error: errors.LLMTasksError) -> int:
    """The status of a typed error."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def typed(error: errors.LLMTasksError) -> JSONResponse:
    """The answer for a typed error; with when to come back, where that helps."""
    status = status_of(error)
    headers = {}
    if status == 503:  # noqa: PLR2004 - its own name
        wait = getattr(error, "delay", None) or getattr(error, "retry_after", None) or AGAIN_S
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    return answer(status, type(error).__name__, str(error), headers)


def install(app: FastAPI) -> None:
    """Answer with these."""
    app.add_exception_handler(errors.LLMTasksError, _typed)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientLeftError, _left)
    app.add_exception_handler(Exception, _defect)


async def _typed(_request: Request, error: Any) -> Response:
    return typed(error)


async def _refused(_request: Request, error: Any) -> Response:
    return answer(error.status, error.name, str(error), error.headers)


async def _invalid(_request: Request, error: Any) -> Response:
    """Where it is wrong and what is allowed, without what was sent."""
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
        for fault in error.errors()[:5]
    ]
    return answer(422, "InvalidRequest", "; ".join(faults))


async def _http(_request: Request, error: Any) -> Response:
    names = {404: "NotFound", 405: "MethodNotAllowed", 400: "BadRequest"}
    name = names.get(error.status_code, "HTTPError")
    return answer(error.status_code, name, str(error.detail), error.headers)


async def _left(_request: Request, _error: Any) -> Response:
    return Response(status_code=499)


async def _defect(_request: Request, error: Exception) -> Response:
    logs.error(_log, "request-failed", why=type(error).__name__, at=logs.place(error))
    return answer(500, "InternalError", "the server made a mistake; its log says where")
