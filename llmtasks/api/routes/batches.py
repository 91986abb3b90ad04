"""Batches: many documents, one task."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from llmtasks import client, watching
from llmtasks.api import following, schemas
from llmtasks.api.callers import TheCaller
from llmtasks.api.errors import RefusedError
from llmtasks.api.routes import NOT_FOUND, REFUSALS, OwnBatch, TheResources
from llmtasks.api.routes.jobs import EVENTS, FIRST_S, own_options
from llmtasks.api.sse import EventStream, first_of
from llmtasks.errors import BatchExists, UsageError
from llmtasks.shapes import result_json, status_json

router = APIRouter(tags=["batches"], responses=REFUSALS)


@router.post(
    "/batches",
    status_code=202,
    operation_id="submitBatch",
    summary="Submit many documents for one task",
    responses={409: {"model": schemas.Error, "description": "The batch id is another's."}},
)
def submit(
    new: schemas.NewBatch, caller: TheCaller, resources: TheResources
) -> schemas.SubmittedBatch:
    """All of its jobs have their rows before the answer, or none has."""
    if (new.document_ids is not None) == new.all:
        raise UsageError("name document_ids, or say all: one of both")
    most = resources.settings.api.max_batch
    wanted = new.document_ids or client.document_ids(caller.tenant)
    ids = list(itertools.islice(wanted, most + 1))
    if len(ids) > most:
        raise RefusedError(413, "TooLarge", f"a request may submit {most:,} documents")
    if new.batch_id is not None and watching.tenant_of(new.batch_id) is not None:
        raise BatchExists("there is a batch or a job of this id already")
    made = client.submit_batch(
        ids,
        new.task_type,
        batch_id=new.batch_id,
        only_new=True,
        tenant=caller.tenant,
        **own_options(new.options),
        **new.common(),
    )
    return schemas.SubmittedBatch(batch_id=made.batch_id, jobs=made.jobs)


@router.get(
    "/batches/{batch_id}",
    operation_id="getBatch",
    summary="Where a batch stands",
    responses=NOT_FOUND,
)
def get(batch_id: OwnBatch) -> schemas.Status:
    """True at this moment; also of a Celery group, or a single job."""
    return schemas.Status.model_validate(status_json(client.status(batch_id)))


@router.get(
    "/batches/{batch_id}/results",
    operation_id="getResults",
    summary="The jobs of a batch with their results",
    response_class=Response,
    responses={
        200: {
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            "description": "A line of JSON for each job, of the shape of `GET /jobs/{job_id}`.",
        },
        **NOT_FOUND,
    },
)
def results(batch_id: OwnBatch) -> Response:
    """In the order of submission, sent while they are read: a million need no memory."""
    lines = _lines(batch_id)
    return StreamingResponse(lines, media_type="application/x-ndjson")


def _lines(batch_id: str) -> Iterator[str]:
    for found in client.results(batch_id=batch_id):
        yield json.dumps(result_json(found), ensure_ascii=True) + "\n"


@router.post(
    "/batches/{batch_id}/cancel",
    operation_id="cancelBatch",
    summary="Cancel what has not ended",
    responses=NOT_FOUND,
)
def cancel(batch_id: OwnBatch) -> schemas.Count:
    """Queued jobs stop at once, running ones at their next step."""
    return schemas.Count(jobs=client.cancel(batch_id))


@router.post(
    "/batches/{batch_id}/retry",
    operation_id="retryBatch",
    summary="Queue failed and cancelled jobs again",
    responses=NOT_FOUND,
)
def retry(batch_id: OwnBatch, which: schemas.Retry | None = None) -> schemas.Count:
    """With `failed_only` what was cancelled stays cancelled."""
    failed_only = which is not None and which.failed_only
    return schemas.Count(jobs=client.retry(batch_id, failed_only=failed_only))


@router.get(
    "/batches/{batch_id}/events",
    operation_id="watchBatch",
    summary="How a batch goes on",
    responses={200: EVENTS, **NOT_FOUND},
    response_class=Response,
)
async def events(batch_id: OwnBatch, request: Request, resources: TheResources) -> Response:
    """`data:` of the shape of `GET /batches/{batch_id}`, now and whenever it changes, until it has ended."""
    found = following.batch_events(resources, batch_id)
    return EventStream(await first_of(found, FIRST_S, request.receive), resources.room.stopping)
