"""One module a noun. Functions that are not async run on threads: SQL stays there."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Depends, Request

from llmtasks import watching
from llmtasks.api import schemas
from llmtasks.api.callers import TheCaller
from llmtasks.api.resources import Resources
from llmtasks.errors import UnknownJob

#: What every route may answer besides, by status.
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": schemas.Error, "description": text}
    for status, text in {
        400: "The request cannot be read.",
        401: "A token is needed.",
        403: "Not for this caller.",
        408: "The body did not go on.",
        413: "Larger than may be.",
        415: "The body is not said to be JSON.",
        422: "Something in the request is not allowed; the message says what.",
        503: "Something does not answer now; `Retry-After` says when to come back.",
    }.items()
}
NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": schemas.Error, "description": "Nothing of the caller's has this id."}
}


def resources(request: Request) -> Resources:
    """What this server owns."""
    found: Resources = request.app.state.resources
    return found


TheResources = Annotated[Resources, Depends(resources)]


def owned(target: str, caller: TheCaller) -> str:
    """The id of a batch or job of the caller's; another's is as unknown as none.

    Raises:
        UnknownJob: nothing of the caller's has this id.
    """
    if watching.tenant_of(target) != caller.tenant:
        raise UnknownJob.named(target)
    return target


def _owned_job(job_id: str, caller: TheCaller) -> str:
    if watching.tenant_of_job(job_id) != caller.tenant:
        raise UnknownJob(f"no job has the id {job_id!r}")
    return job_id


def _owned_batch(batch_id: str, caller: TheCaller) -> str:
    return owned(batch_id, caller)


OwnJob = Annotated[str, Depends(_owned_job)]
OwnBatch = Annotated[str, Depends(_owned_batch)]
