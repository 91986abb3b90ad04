"""Every error as a status and one shape, `{"error": {"type", "message"}}`. Nothing sent is quoted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from llmtasks import errors, logs
from llmtasks.api.sse import ClientLeftError

_log = logs.get("api")

#: Seconds after which what is away may be back.
AGAIN_S: Final = 5
#: Faults of a request that are told, and characters of each name in them.
_SHOWN: Final = 5
_MOST: Final = 60
#: What pydantic says too much in its own words.
_WORDS: Final = {
    "string_pattern_mismatch": "has a character that is not allowed here",
    "string_unicode": "is no text: it has half a surrogate pair",
    "extra_forbidden": "is not known here",
    "missing": "is required",
}

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


class RefusedError(HTTPException):
    """A request that is answered with this status, and goes no further.

    It is of FastAPI's kind, who takes every other for bad JSON where it reads a body.
    """

    def __init__(
        self, status: int, name: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.name = name


def answer(
    status: int, name: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the one shape."""
    body = {"error": {"type": name, "message": message}}
    return JSONResponse(body, status, headers=dict(headers or {}))


def refusal(error: RefusedError) -> JSONResponse:
    """The answer to a refused request."""
    return answer(error.status_code, error.name, error.detail, error.headers)


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
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _defect)


async def _typed(_request: Request, error: Any) -> Response:
    return typed(error)


async def _refused(_request: Request, error: Any) -> Response:
    return refusal(error)


async def _invalid(request: Request, error: Any) -> Response:
    """Where it is wrong and what is allowed, without what was sent."""
    faults = error.errors()[:_SHOWN]
    if faults[0]["loc"] == ("body",) and not _is_json(request):
        wanted = "send the body as JSON, with the header Content-Type: application/json"
        return answer(415, "UnsupportedMediaType", wanted)
    return answer(422, "InvalidRequest", "; ".join(_fault(fault) for fault in faults))


def _fault(fault: Mapping[str, Any]) -> str:
    """`options.x: what is wrong with it`. Names in it may be the client's own, of any length."""
    where, *path = fault["loc"]
    at = ".".join(str(part)[:_MOST] for part in path) or where
    if fault["type"] == "json_invalid":
        return f"the body is no JSON: {fault['ctx']['error']} at character {path[0]}"
    return f"{at}: {_WORDS.get(fault['type'], fault['msg'])}"


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


async def _http(request: Request, error: Any) -> Response:
    match error.status_code:
        case 404:
            return answer(
                404, "NotFound", "nothing is at this path; /openapi.json lists what there is"
            )
        case 405:
            allowed = ", ".join(_allowed(request))
            message = f"here the method is one of: {allowed}"
            return answer(405, "MethodNotAllowed", message, {"Allow": allowed})
        case 400:
            message = "the body cannot be read as JSON in UTF-8; it may also be nested too deeply"
            return answer(400, "BadRequest", message)
    return answer(error.status_code, "HTTPError", str(error.detail), error.headers)


def _allowed(request: Request) -> list[str]:
    """The methods of a path: of all of its routes, where Starlette tells those of the first one."""
    methods = ("GET", "HEAD", "POST", "PUT")
    return [one for one in methods if _has(request, one)]


def _has(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


async def _left(_request: Request, _error: Any) -> Response:
    return Response(status_code=499)


async def _defect(_request: Request, error: Exception) -> Response:
    logs.error(_log, "request-failed", why=type(error).__name__, at=logs.place(error))
    return answer(500, "InternalError", "the server made a mistake; its log says where")
