"""Whatever a provider answers: so many calls and no more, and nobody else pays for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet import provider
from support.simulated import Simulated
from support.stack import eventually
from support.valkey import Valkey

from llmtasks.admission import Admission, ProviderState, connect
from llmtasks.errors import (
    AttemptsExhausted,
    ContextWindowExceeded,
    LLMTasksError,
    NotNow,
    OutputRefused,
    OutputTruncated,
    RequestRejected,
)
from llmtasks.gateway import Gateway, Journal, Question
from llmtasks.messages import Request
from llmtasks.providers import build
from llmtasks.settings import Cache, Provider, Retry

MAX_ATTEMPTS = 4
POLICY = Retry(max_attempts=MAX_ATTEMPTS, base_s=0.002, max_s=0.01, default_retry_after_s=0.1)

#: What no repetition mends, and how it ends.
FINAL = {
    "400": RequestRejected,
    "context_window": ContextWindowExceeded,
    "length": OutputTruncated,
    "refusal": OutputRefused,
}
#: What spends an attempt.
TRANSIENT = ("500", "503", "529", "reset", "cut_json", "bad_json")
#: What takes the only provider out for longer than a job waits in place.
OUT = ("401", "insufficient_quota")


@contextlib.asynccontextmanager
async def gateway(valkey: Valkey, prefix: str, *providers: Provider) -> AsyncIterator[Gateway]:
    """One process's way to the providers."""
    admission = Admission(connect(valkey.url), prefix=prefix, providers=providers, cache=Cache())
    clients = {one.name: build(one, f"sk-{one.name}-0123456789") for one in providers}
    made = Gateway(admission, clients, policy=POLICY, park_after_s=5.0, max_calls=100)
    try:
        yield made
    finally:
        await made.aclose()
        await admission.aclose()


def simulated_at(sim: Simulated, name: str, **values: Any) -> Provider:
    return provider(name, base_url=sim.openai_url, model=f"model-{name}", **values)


def question(*providers: str, text: str = "A text.") -> Question:
    return Question(
        request=Request(system="Summarize.", prompt=text, max_output_tokens=50),
        key=uuid.uuid4().hex,
        shared=False,
        providers=providers,
        input_tokens=10,
        exact=False,
        task="summarize",
        tenant="default",
        priority=0,
    )


def at_once(function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()
    done.set_result(function())
    return done


def journal() -> Journal:
    return Journal(attempts=1, on_thread=at_once, on_wait=lambda _why, _seconds: None)


def expected(faults: list[str]) -> tuple[int, int, type[LLMTasksError] | None]:
    """Calls, attempts and end of a question that meets these faults and then none."""
    attempts = 1
    for calls, fault in enumerate(faults, start=1):
        if fault in FINAL:
            return calls, attempts, FINAL[fault]
        if fault in OUT:
            return calls, attempts, NotNow
        if fault in TRANSIENT:
            if attempts == MAX_ATTEMPTS:
                return calls, attempts, AttemptsExhausted
            attempts += 1
    return len(faults) + 1, attempts, None


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    faults=st.lists(
        st.one_of(
            st.sampled_from(TRANSIENT),
            st.sampled_from(TRANSIENT),
            st.sampled_from(("429", *OUT, *FINAL)),
        ),
        max_size=6,
    )
)
def test_any_sequence_of_faults_costs_so_many_calls_and_ends(
    valkey: Valkey, sim: Simulated, faults: list[str]
) -> None:
    """At most `max_attempts` failures; a rate limit spends none; what no repetition mends is not repeated."""
    sim.reset()
    for fault in faults:
        wait = {"retry_after": 0.05, "retry_after_form": "fraction"} if fault == "429" else {}
        sim.faults(kind=fault, next=1, **wait)
    calls, attempts, end = expected(faults)
    spent = journal()

    async def ask() -> None:
        async with gateway(valkey, f"test-{uuid.uuid4().hex}", simulated_at(sim, "a")) as one:
            await one.ask(question("a"), spent)

    if end is None:
        asyncio.run(ask())
    else:
        with pytest.raises(end):
            asyncio.run(ask())
    assert sim.stats()["requests"] == calls
    assert spent.attempts == attempts


@pytest.mark.parametrize("fault", OUT)
def test_a_refused_key_takes_its_own_provider_out_and_no_other(
    valkey: Valkey, sim: Simulated, fault: str
) -> None:
    sim.faults(kind=fault, model="model-a")

    async def ask() -> list[ProviderState]:
        ours = simulated_at(sim, "a"), simulated_at(sim, "b")
        async with gateway(valkey, f"test-{uuid.uuid4().hex}", *ours) as one:
            for _ in range(6):
                await one.ask(question("a", "b"), journal())
            return [status.state for status in await one._admission.status()]

    assert asyncio.run(ask()) == [ProviderState.DISABLED, ProviderState.OK]
    by_model = sim.stats()["by_model"]
    assert sum(by_model["model-a"].values()) == 1
    assert by_model["model-b"] == {"200": 6}


@pytest.mark.parametrize("fault", ["400", "context_window"])
def test_a_wrong_request_is_sent_to_no_second_provider_and_harms_none(
    valkey: Valkey, sim: Simulated, fault: str
) -> None:
    sim.faults(kind=fault, match="wrong")

    async def ask() -> list[ProviderState]:
        ours = simulated_at(sim, "a"), simulated_at(sim, "b")
        async with gateway(valkey, f"test-{uuid.uuid4().hex}", *ours) as one:
            for _ in range(12):
                with pytest.raises(FINAL[fault]):
                    await one.ask(question("a", "b", text="wrong"), journal())
            return [status.state for status in await one._admission.status()]

    assert asyncio.run(ask()) == [ProviderState.OK] * 2
    assert sim.stats()["requests"] == 12


def test_a_failed_provider_is_not_asked_again_while_another_is_left(
    valkey: Valkey, sim: Simulated
) -> None:
    sim.faults({"kind": "500", "model": "model-a"}, {"kind": "500", "model": "model-b"})

    async def ask() -> None:
        weights = {"a": 100.0, "b": 10.0, "c": 1.0}
        ours = [simulated_at(sim, name, weight=weight) for name, weight in weights.items()]
        async with gateway(valkey, f"test-{uuid.uuid4().hex}", *ours) as one:
            await one.ask(question("a", "b", "c"), journal())

    asyncio.run(ask())
    assert [line["model"] for line in sim.log()] == ["model-a", "model-b", "model-c"]


@pytest.mark.parametrize("while_it", ["waits for its turn", "sits out a rate limit", "calls"])
def test_a_question_that_is_given_up_calls_nobody_any_more(
    valkey: Valkey, sim: Simulated, while_it: str
) -> None:
    """Its place in time goes to another one, which alone calls."""
    waits: list[str] = []
    spent = Journal(attempts=1, on_thread=at_once, on_wait=lambda why, _: waits.append(why))
    ours = simulated_at(sim, "a", requests_per_minute=60.0, burst_s=0)

    async def is_at_it(one: Gateway) -> bool:
        match while_it:
            case "waits for its turn":
                (status,) = await one._admission.status()
                return status.dimensions[0].ahead_s > 1
            case "sits out a rate limit":
                return bool(waits)
        return bool(sim.stats()["in_flight"] == 1)

    async def ask() -> None:
        async with gateway(valkey, f"test-{uuid.uuid4().hex}", ours) as one:
            if while_it == "waits for its turn":
                await one.ask(question("a"), journal())
            elif while_it == "calls":
                sim.latency(20.0)
            else:
                sim.faults(kind="429", next=1, retry_after=1)
            asking = asyncio.create_task(one.ask(question("a"), spent))
            async with asyncio.timeout(20):
                while not await is_at_it(one):  # noqa: ASYNC110  # the servers' states
                    await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            (status,) = await one._admission.status()
            if while_it == "waits for its turn":
                assert status.dimensions[0].ahead_s <= 1
            if while_it != "calls":
                # Another one, asked behind it, has its turn and is the only one that calls.
                await one.ask(question("a"), journal())

    asyncio.run(ask())
    eventually(lambda: sim.stats()["in_flight"] == 0, "the call is given up")
    assert sim.stats()["requests"] == (1 if while_it == "calls" else 2)


def test_no_process_calls_once_one_was_told_to_wait(valkey: Valkey, sim: Simulated) -> None:
    """Three of them, with calls under way: all are silent from a fifth of a second after the first 429."""
    wait = 2.0
    sim.latency(0.05)
    sim.faults(kind="429", next=1, retry_after=wait, after_s=0.4)
    ours = simulated_at(sim, "a", requests_per_minute=3000, burst_s=0)
    prefix = f"test-{uuid.uuid4().hex}"

    async def ask() -> None:
        async with contextlib.AsyncExitStack() as closing:
            fleet = [
                await closing.enter_async_context(gateway(valkey, prefix, ours)) for _ in range(3)
            ]
            await asyncio.gather(
                *(
                    one.ask(question("a"), journal())
                    for one, _ in itertools.product(fleet, range(25))
                )
            )

    asyncio.run(ask())
    lines = sorted(sim.log(), key=lambda line: line["at"])
    (refused,) = (line["at"] for line in lines if line["status"] == 429)
    later = [line["at"] - refused for line in lines if line["at"] > refused]
    assert len(lines) == 3 * 25 + 1
    assert [seconds for seconds in later if 0.3 < seconds < wait - 0.05] == []
    assert max(later) > wait
