"""A conversation, token by token."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llmtasks.api import following, schemas
from llmtasks.api.callers import TheCaller
from llmtasks.api.routes import REFUSALS, TheResources
from llmtasks.api.routes.jobs import EVENTS
from llmtasks.api.sse import EventStream, first_of
from llmtasks.errors import InvalidOption
from llmtasks.messages import Request as Question
from llmtasks.messages import Role, Turn

#: Seconds for which a chat's own failure is still told by a status: below the patience of proxies.
_FIRST_S = 45.0

router = APIRouter(tags=["chat"], responses=REFUSALS)


@router.post(
    "/chat/stream",
    operation_id="streamChat",
    summary="Ask a model, and read its answer while it is written",
    response_class=Response,
    responses={
        200: EVENTS,
        502: {"model": schemas.Error, "description": "No provider gave an answer."},
        504: {"model": schemas.Error, "description": "No provider answered in time."},
    },
)
async def stream(
    asked: schemas.Chat, request: Request, caller: TheCaller, resources: TheResources
) -> Response:
    """`data: {"token"}` for each piece, `event: end` with how it ended, its tokens and cost, `[DONE]`.

    It goes through the fleet's limits, weights and health like every job. A call that breaks before its first
    token is asked again, elsewhere if somebody else can; one that breaks later ends in `event: error` and
    without `[DONE]`. Leaving cancels the call. Nothing is stored.
    """
    question = _question(asked, resources.settings.api.chat_output_tokens)
    providers = resources.chat.providers(asked.model)
    answer = resources.chat.stream(
        question, providers, tenant=caller.tenant, priority=asked.priority
    )
    events = following.chat_events(resources, answer)
    return EventStream(await first_of(events, _FIRST_S, request.receive))


def _question(asked: schemas.Chat, output_tokens: int) -> Question:
    """The conversation as a request to a model.

    Raises:
        InvalidOption: its last turn is not the user's, or a system turn is not the first.
    """
    first, *rest = asked.messages
    system = first.content if first.role == "system" else ""
    turns = rest if first.role == "system" else [first, *rest]
    if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
        raise InvalidOption("messages: the last one must be the user's, and not blank")
    if any(turn.role == "system" for turn in turns):
        raise InvalidOption("messages: one of the system must be the first")
    return Question(
        system=system,
        prompt=turns[-1].content,
        history=tuple(Turn(Role(turn.role), turn.content) for turn in turns[:-1]),
        max_output_tokens=asked.max_output_tokens or output_tokens,
        temperature=asked.temperature,
    )
