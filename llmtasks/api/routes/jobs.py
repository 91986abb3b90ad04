"""Jobs: one document, one task."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response

from llmtasks import client, tasks
from llmtasks.api import following, schemas
from llmtasks.api.callers import TheCaller
from llmtasks.api.routes import NOT_FOUND, REFUSALS, OwnJob, TheResources
from llmtasks.api.sse import EventStream, first_of
from llmtasks.errors import InvalidOption
from llmtasks.shapes import result_json
from llmtasks.submission import COMMON_OPTIONS

router = APIRouter(tags=["jobs"], responses=REFUSALS)

#: Seconds for which a stream's own failure is still told by a status.
FIRST_S = 10.0
EVENTS: dict[str, Any] = {
    # `schema` is of each event, as readers of OpenAPI before 3.2 take it.
    "content": {"text/event-stream": {"schema": schemas.EVENT}},
    "description": "Server-sent events; the last one of a stream that came to its end is `[DONE]`.",
}


@router.post(
    "/jobs", status_code=202, operation_id="submitJob", summary="Submit one document for one task"
)
def submit(new: schemas.NewJob, caller: TheCaller) -> schemas.SubmittedJob:
    """It has its row before the answer: from then on it ends completed, failed or cancelled."""
    options = own_options(new.options)
    sent = tasks.process_document.apply_async(
        (new.document_id, new.task_type),
        {**options, **new.common(), "tenant": caller.tenant},
        ignore_result=True,
    )
    return schemas.SubmittedJob(job_id=sent.id)


def own_options(given: dict[str, Any]) -> dict[str, Any]:
    """A task type's own options.

    Raises:
        InvalidOption: one of every task's is among them.
    """
    for name in given:
        if name in COMMON_OPTIONS or name in {"document_id", "task_type", "ids", "batch_id"}:
            raise InvalidOption(f"{name} is no option of a task; it stands beside them")
    return given


@router.get(
    "/jobs/{job_id}", operation_id="getJob", summary="A job and its result", responses=NOT_FOUND
)
def get(job_id: OwnJob) -> schemas.Result:
    """`output` is there once its state is `completed`, `error` once it is `failed`."""
    return schemas.Result.model_validate(result_json(client.job(job_id)))


@router.post(
    "/jobs/{job_id}/cancel", operation_id="cancelJob", summary="Cancel a job", responses=NOT_FOUND
)
def cancel(job_id: OwnJob) -> schemas.Count:
    """One that runs stops at its next step; one that has ended stays as it is (`jobs` is 0)."""
    return schemas.Count(jobs=client.cancel(job_id))


@router.post(
    "/jobs/{job_id}/retry",
    operation_id="retryJob",
    summary="Queue a failed or cancelled job again",
    responses=NOT_FOUND,
)
def retry(job_id: OwnJob) -> schemas.Count:
    """One that is open or completed stays as it is (`jobs` is 0)."""
    return schemas.Count(jobs=client.retry(job_id))


@router.get(
    "/jobs/{job_id}/stream",
    operation_id="streamJob",
    summary="A job's answer while it is written",
    responses={200: EVENTS, **NOT_FOUND},
    response_class=Response,
)
async def stream(
    job_id: OwnJob,
    request: Request,
    resources: TheResources,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """`data: {"token"}` for each piece; `event: reset`: forget what came so far, the answer begins anew;
    `event: result` with the job's result; `event: error` for one that failed.

    A job submitted with `stream` is shown while it is written, also to who comes late or again
    (`Last-Event-ID`), at any server. Of others the whole answer comes once it is there.
    """
    events = following.job_events(resources, job_id, last_event_id)
    events = await first_of(events, FIRST_S, request.receive)
    return EventStream(events, resources.room.stopping)
