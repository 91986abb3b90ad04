"""A Redis that hangs or refuses: who gives up, or has paid, leaves nothing behind and loses nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.fleet import provider
from support.valkey import RestartableValkey

from llmtasks import gateway
from llmtasks.admission import Admission, Claim, Go, Rejected, connect
from llmtasks.gateway import Gateway, Journal, Question
from llmtasks.messages import Completion, FinishReason, Request, Usage
from llmtasks.settings import Cache, Retry

#: Seconds in which whatever is awaited here must have happened; less than a lease, which ends by itself.
PATIENCE_S = 5.0


class Model:
    """A provider that answers when it is allowed to."""

    model = "m"

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.answers = asyncio.Event()

    async def complete(self, _request: Request, _on_text: object = None) -> Completion:
        self.called.set()
        await self.answers.wait()
        return Completion(
            text="An answer.",
            finish_reason=FinishReason.STOP,
            usage=Usage(input_tokens=1, output_tokens=1),
            provider="a",
            model="m",
            latency_s=0.1,
        )

    async def aclose(self) -> None:
        """Nothing is open."""


class Process:
    """One process's questions."""

    def __init__(self, url: str, **limits: Any) -> None:
        self.url = url
        self.admission = Admission(
            connect(url), prefix="t", providers=[provider("a", **limits)], cache=Cache()
        )
        self.model = Model()
        self.gateway = Gateway(
            self.admission, {"a": self.model}, policy=Retry(), park_after_s=5.0, max_calls=10
        )
        self.journal = Journal(attempts=1, on_thread=at_once, on_wait=lambda *_: None)

    def ask(self) -> asyncio.Task[gateway.Answer]:
        question = Question(
            request=Request(system="s", prompt="p", max_output_tokens=5),
            key="question",
            shared=True,
            providers=("a",),
            input_tokens=1,
            exact=True,
            task="t",
            tenant="d",
            priority=0,
        )
        return asyncio.create_task(self.gateway.ask(question, self.journal))

    async def asked(self) -> None:
        await until(lambda: self.admission._to._under_way > 0)  # type: ignore[attr-defined]

    async def told(self) -> None:
        await until(lambda: not self.gateway._telling)


@contextlib.asynccontextmanager
async def process(url: str, **limits: Any) -> AsyncIterator[Process]:
    one = Process(url, **limits)
    try:
        yield one
    finally:
        await one.gateway.aclose()
        await one.admission.aclose()


def at_once(function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()
    done.set_result(function())
    return done


def claim(key: str) -> Claim:
    return Claim(
        attempt_id=uuid.uuid4().hex,
        waiter=f"other.{uuid.uuid4().hex}",
        key=key,
        input_tokens=1,
        output_tokens=1,
        providers=("a",),
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # also a server's states
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("late", ["grant", "wait"])
def test_a_question_given_up_while_redis_hangs_is_led_by_nobody(
    own_valkey: RestartableValkey, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Whatever is decided of it comes after it was left, and is left again."""
    monkeypatch.setattr(gateway, "HANGS_S", 0.1)

    async def test() -> None:
        async with process(own_valkey.url, max_concurrency=1) as one:
            await one.admission.status()
            before = await one.admission.admit(claim("another")) if late == "wait" else None
            own_valkey.signal(signal.SIGSTOP)
            asking = one.ask()
            await one.asked()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            own_valkey.signal(signal.SIGCONT)
            await one.told()
            (status,) = await one.admission.status()
            assert (status.waiting, status.in_flight) == (0, 0 if before is None else 1)
            if isinstance(before, Go):
                await one.admission.settle(before, Rejected())
            async with process(own_valkey.url, max_concurrency=1) as other:
                assert isinstance(await other.admission.admit(claim("question")), Go)

    asyncio.run(test())


async def spoil(one: Process) -> None:
    """Make every script that comes to the provider's state fail."""
    redis = connect(one.url)
    for key in await redis.keys("t:{llm}:*"):
        await redis.delete(key)
        await redis.set(key, "not of this type")
    await redis.aclose()


def test_a_paid_answer_stands_although_its_settlement_fails(
    own_valkey: RestartableValkey, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with process(own_valkey.url) as one:
            asking = one.ask()
            await one.model.called.wait()
            await spoil(one)
            one.model.answers.set()
            assert (await asking).output == "An answer."
            assert [call.outcome for call in one.journal.calls] == [gateway.OK]

    asyncio.run(test())
    assert "not-told why=ResponseError" in caplog.text
    assert "An answer." not in caplog.text


@pytest.mark.parametrize("while_it", ["asks", "calls"])
def test_who_gives_up_is_told_so_although_the_clean_up_fails(
    own_valkey: RestartableValkey, while_it: str
) -> None:
    async def test() -> None:
        async with process(own_valkey.url, max_concurrency=1) as one:
            if while_it == "calls":
                asking = one.ask()
                await one.model.called.wait()
                await spoil(one)
            else:
                before = await one.admission.admit(claim("another"))
                assert isinstance(before, Go)
                await spoil(one)
                own_valkey.signal(signal.SIGSTOP)
                asking = one.ask()
                await one.asked()
            asking.cancel()
            own_valkey.signal(signal.SIGCONT)
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(test())
