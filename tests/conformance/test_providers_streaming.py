"""A streamed answer: its pieces as they come, and never an end that the provider did not say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from llmtasks import errors
from llmtasks.messages import FinishReason, Request, Role, Turn, Usage
from tests.conformance.test_providers import DOCUMENT, KEY, KINDS, REQUEST, Kind, provider
from tests.support.model_server import Fault, ModelServer, Reply, model_server
from tests.support.simulated import simulated

pytestmark = pytest.mark.anyio

PIECES = ("Hel", "lo ", "Wörld — 你好.")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as running:
        yield running


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@dataclass(frozen=True)
class Said:
    """The events of a stream, as an API frames them."""

    begin: list[dict[str, Any]]
    pieces: list[dict[str, Any]]
    finish: list[dict[str, Any]]
    end: bytes


def said(kind: Kind, pieces: tuple[str, ...] = PIECES, reason: str | None = "") -> Said:
    reason = kind.stop if reason == "" else reason
    if kind.name == "openai":
        usage = {"prompt_tokens": 20, "completion_tokens": 5}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {"id": "c-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        return Said(
            begin=[chunk({"role": "assistant", "content": ""})],
            pieces=[chunk({"content": piece}) for piece in pieces],
            finish=[chunk({}, reason), {"id": "c-1", "choices": [], "usage": usage}],
            end=b"data: [DONE]\n\n",
        )
    message = {"id": "c-1", "usage": {"input_tokens": 20, "output_tokens": 1}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}
    thought = {"type": "thinking_delta", "thinking": "hm"}
    deltas: list[dict[str, Any]] = [thought, *({"type": "text_delta", "text": p} for p in pieces)]
    last = {"stop_reason": reason, "stop_sequence": None}
    return Said(
        begin=[{"type": "message_start", "message": message}, {"type": "ping"}, block],
        pieces=[{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas],
        finish=[{"type": "message_delta", "delta": last, "usage": {"output_tokens": 5}}],
        end=b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
    )


def events(*values: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)


def streamed(body: bytes, fault: Fault = Fault.NONE) -> Reply:
    headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_1"}
    return Reply(body=body, headers=headers, fault=fault)


def whole(one: Said) -> bytes:
    return events(*one.begin, *one.pieces, *one.finish) + one.end


async def test_the_pieces_come_in_order_and_the_answer_is_whole(
    kind: Kind, server: ModelServer
) -> None:
    server.script(streamed(whole(said(kind))))
    heard: list[str] = []
    async with provider(kind, server.url) as mine:
        answer = await mine.complete(REQUEST, heard.append)
    assert heard == list(PIECES)
    assert answer.text == "".join(PIECES)
    assert answer.finish_reason is FinishReason.STOP
    assert answer.usage == Usage(input_tokens=20, output_tokens=5)
    assert answer.request_id == "req_1"
    assert answer.first_text_s is not None
    assert 0 < answer.first_text_s <= answer.latency_s
    assert server.received[0].body["stream"] is True


async def test_a_question_that_nobody_listens_to_is_not_streamed(
    kind: Kind, server: ModelServer
) -> None:
    server.script(kind.reply())
    async with provider(kind, server.url) as mine:
        assert (await mine.complete(REQUEST)).first_text_s is None
    assert "stream" not in server.received[0].body


async def test_the_connection_is_kept_after_a_stream(kind: Kind, server: ModelServer) -> None:
    server.script(streamed(whole(said(kind))))
    async with provider(kind, server.url) as mine:
        for _ in range(3):
            await mine.complete(REQUEST, _nobody)
    assert (len(server.received), server.connections) == (3, 1)


@pytest.mark.parametrize("reason", [None, "tired"])
async def test_a_stream_that_does_not_say_how_it_ended_is_no_answer(
    kind: Kind, server: ModelServer, reason: str | None
) -> None:
    failure = await failing(kind, server, streamed(whole(said(kind, reason=reason))))
    assert type(failure) is errors.InvalidResponse
    assert failure.maybe_paid


async def test_a_stream_cut_between_two_events_is_no_answer(
    kind: Kind, server: ModelServer
) -> None:
    one = said(kind)
    failure = await failing(kind, server, streamed(events(*one.begin, *one.pieces)))
    assert type(failure) is errors.InvalidResponse
    assert failure.maybe_paid


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET])
async def test_a_connection_that_breaks_may_have_been_paid(
    kind: Kind, server: ModelServer, fault: Fault
) -> None:
    failure = await failing(kind, server, streamed(whole(said(kind)), fault))
    assert type(failure) is errors.ProviderUnavailable
    assert failure.maybe_paid


async def test_a_stream_that_stalls_ends_at_the_deadline(kind: Kind, server: ModelServer) -> None:
    reply = streamed(whole(said(kind)), Fault.STALL)
    failure = await failing(kind, server, reply, timeout_s=0.2)
    assert type(failure) is errors.ProviderTimeout
    assert failure.maybe_paid
    await asyncio.wait_for(server.client_left.wait(), 5)


async def test_an_error_in_the_middle_of_a_stream_is_a_provider_in_trouble(
    kind: Kind, server: ModelServer
) -> None:
    one = said(kind)
    broken = {"type": "error", "error": {"type": "overloaded_error", "message": DOCUMENT}}
    failure = await failing(kind, server, streamed(events(*one.begin, *one.pieces, broken)))
    assert type(failure) is errors.ProviderUnavailable
    assert failure.maybe_paid


@pytest.mark.parametrize(
    "body", [b'data: {"choi\n\n', b"data: 7\n\n", b"data: \xff\xfe\n\n", b"<html>sorry</html>", b""]
)
async def test_events_that_are_not_of_the_protocol(
    kind: Kind, server: ModelServer, body: bytes
) -> None:
    failure = await failing(kind, server, streamed(body))
    assert isinstance(failure, errors.TransientProviderError)
    assert failure.maybe_paid


async def test_a_whole_answer_where_a_stream_was_asked_for_is_not_of_the_protocol(
    kind: Kind, server: ModelServer
) -> None:
    failure = await failing(kind, server, kind.reply())
    assert type(failure) is errors.InvalidResponse


async def test_a_429_before_a_stream_carries_its_wait(kind: Kind, server: ModelServer) -> None:
    refused = Reply(status=429, body=b"{}", headers={"retry-after": "7"})
    failure = await failing(kind, server, refused)
    assert isinstance(failure, errors.RateLimitError)
    assert failure.retry_after == 7.0


async def test_an_empty_stream_that_stopped_is_no_answer(kind: Kind, server: ModelServer) -> None:
    failure = await failing(kind, server, streamed(whole(said(kind, pieces=()))))
    assert type(failure) is errors.InvalidResponse


async def test_a_cut_answer_says_so(kind: Kind, server: ModelServer) -> None:
    server.script(streamed(whole(said(kind, reason=kind.length))))
    async with provider(kind, server.url) as mine:
        answer = await mine.complete(REQUEST, _nobody)
    assert answer.finish_reason is FinishReason.LENGTH


async def test_cancelling_in_the_middle_closes_the_connection(
    kind: Kind, server: ModelServer
) -> None:
    long = whole(said(kind, pieces=PIECES * 4))  # half of which holds text
    server.script(streamed(long, Fault.STALL), streamed(whole(said(kind))))
    first = asyncio.Event()
    async with provider(kind, server.url) as mine:
        call = asyncio.create_task(mine.complete(REQUEST, lambda _piece: first.set()))
        await asyncio.wait_for(first.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.client_left.wait(), 5)
        assert (await mine.complete(REQUEST, _nobody)).text == "".join(PIECES)


async def test_the_earlier_turns_of_a_conversation_are_sent_in_their_order(
    kind: Kind, server: ModelServer
) -> None:
    server.script(kind.reply())
    turns = (Turn(Role.USER, "Who?"), Turn(Role.ASSISTANT, "Ms Doe."))
    request = Request(system="", prompt="When?", max_output_tokens=9, history=turns)
    async with provider(kind, server.url) as mine:
        await mine.complete(request)
    body = server.received[0].body
    assert [(one["role"], one["content"]) for one in body["messages"]] == [
        ("user", "Who?"),
        ("assistant", "Ms Doe."),
        ("user", "When?"),
    ]
    assert "system" not in body


async def test_pieces_come_while_the_simulator_is_still_writing(kind: Kind) -> None:
    """The simulator paces: with the pieces collected first, they would come all at once."""
    at: list[float] = []
    with simulated(latency=0.4) as simulator:
        simulator.latency(0.4, first_token_s=0.05)
        url = simulator.openai_url if kind.name == "openai" else simulator.anthropic_url
        loop = asyncio.get_running_loop()
        async with provider(kind, url) as mine:
            answer = await mine.complete(REQUEST, lambda _piece: at.append(loop.time()))
    assert len(at) > 2
    assert at[-1] - at[0] > 0.1
    assert answer.first_text_s is not None
    assert answer.first_text_s < answer.latency_s / 2


def _nobody(_piece: str) -> None:
    pass


async def failing(
    kind: Kind, server: ModelServer, reply: Reply, **more: Any
) -> errors.ProviderError:
    """Ask once for a stream, and give the failure; it must tell nothing."""
    server.script(reply)
    async with provider(kind, server.url, **more) as mine:
        with pytest.raises(errors.ProviderError) as failure:
            await mine.complete(REQUEST, _nobody)
    assert len(server.received) == 1, "a provider never retries"
    assert failure.value.__cause__ is None
    assert failure.value.__context__ is None
    for secret in (KEY, DOCUMENT, "Doe"):
        assert secret not in repr(failure.value)
    return failure.value
