"""What operators, load balancers and Prometheus ask."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from llmtasks import task_types, watching
from llmtasks.api import schemas
from llmtasks.api.callers import caller, operator
from llmtasks.api.routes import REFUSALS, TheResources
from llmtasks.errors import AdmissionUnavailable, StoreUnavailable
from llmtasks.standings import standing_json, standings

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health", operation_id="health", summary="The server is there")
async def health() -> schemas.Health:
    """Whatever else is away."""
    return schemas.Health(status="ok")


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    operation_id="ready",
    summary="The server can work",
    response_model=schemas.Ready,
    responses={503: {"model": schemas.Ready, "description": "Something does not answer."}},
)
async def ready(resources: TheResources) -> Response:
    """Whether the database and the fleet's Redis answer."""
    found = schemas.Ready(database=await _database(), redis=await _redis(resources))
    good = found.database == found.redis == "ok"
    return JSONResponse(found.model_dump(), 200 if good else 503)


async def _database() -> str:
    try:
        await run_in_threadpool(watching.answers)
    except StoreUnavailable:
        return "does not answer"
    return "ok"


async def _redis(resources: Any) -> str:
    try:
        await resources.standings()
    except AdmissionUnavailable:
        return "does not answer"
    return "ok"


@router.get(
    "/task-types",
    operation_id="listTaskTypes",
    summary="What can be done with documents",
    dependencies=[Depends(caller)],
    responses=REFUSALS,
)
def list_task_types() -> list[schemas.TaskTypeName]:
    """The shipped ones and those of installed packages."""
    return [
        schemas.TaskTypeName(name=name, queue=task_types.queue(name)) for name in task_types.names()
    ]


@router.get(
    "/providers",
    operation_id="listProviders",
    summary="How the providers stand",
    dependencies=[Depends(caller)],
    responses=REFUSALS,
)
async def list_providers(resources: TheResources) -> list[dict[str, Any]]:
    """The shape of `llmtasks providers --json`."""
    try:
        statuses = {one.name: one for one in await resources.standings()}
        trouble = ""
    except AdmissionUnavailable:
        statuses, trouble = {}, "Redis does not answer"
    recent = await run_in_threadpool(watching.recent_answers)
    found = standings(resources.settings.providers, statuses, recent)
    return [standing_json(one, trouble) for one in found]


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="This server's metrics",
    response_class=Response,
    dependencies=[Depends(operator)],
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "Prometheus.",
        },
        401: REFUSALS[401],
        403: REFUSALS[403],
    },
)
def metrics() -> Response:
    """Workers serve their own; `/metrics/targets` says where."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/metrics/targets",
    operation_id="metricsTargets",
    summary="Where live workers serve their metrics",
    dependencies=[Depends(operator)],
    responses={401: REFUSALS[401], 403: REFUSALS[403], 503: REFUSALS[503]},
)
def targets() -> list[schemas.Target]:
    """For Prometheus' `http_sd_configs`."""
    return [schemas.Target(**one) for one in watching.metrics_targets()]
