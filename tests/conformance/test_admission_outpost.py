"""A process whose Redis is gone: it holds, may go on alone for a while, and goes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from support.fleet import provider
from support.valkey import RestartableValkey

from llmtasks import settings
from llmtasks.admission import (
    Abandoned,
    Admission,
    Alone,
    Claim,
    Decision,
    Follow,
    Go,
    Outpost,
    RateLimited,
    Rejected,
    Wait,
    connect,
    outpost,
)
from llmtasks.errors import AdmissionUnavailable

#: Seconds in which whatever is awaited here must have happened.
PATIENCE_S = 20.0

#: Seconds for which others' grants are waited for here.
HORIZON_S = 0.3


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outpost, "HORIZON_S", HORIZON_S)
    monkeypatch.setattr(outpost, "_LOOK_S", 0.05)


class Process:
    """A worker process' way to admission, and its questions."""

    def __init__(self, url: str, *, for_s: float, name: str = "process", **limits: Any) -> None:
        providers = [provider("p", **limits)]
        fleet = Admission(connect(url), prefix="t", providers=providers, cache=settings.Cache())
        self.fleet = fleet
        self.outpost = Outpost(fleet, Alone(providers, 0.5), local_for_s=for_s)
        self.outpost.start()
        self._name, self._number = name, 0

    async def admit(self, question: int | None = None) -> Decision:
        """Decide a question that is new, or one that was asked before."""
        self._number += 1
        question = question or self._number
        return await self.outpost.admit(
            Claim(
                attempt_id=f"{self._name}-{self._number}",
                waiter=f"{self._name}.{question}",
                key=f"{question}",
                input_tokens=10,
                output_tokens=10,
                providers=("p",),
            )
        )

    async def go(self) -> Go:
        decision = await self.admit()
        assert isinstance(decision, Go), decision
        return decision

    async def unavailable(self) -> bool:
        try:
            decision = await self.admit()
        except AdmissionUnavailable:
            return True
        if isinstance(decision, Go):
            await self.outpost.settle(decision, Abandoned())
        return False

    async def alone(self) -> bool:
        return not await self.unavailable() and await self.away()

    async def away(self) -> bool:
        try:
            await self.outpost.status()
        except AdmissionUnavailable:
            return True
        return False

    async def nothing_taken(self) -> bool:
        (status,) = await self.outpost.status()
        return status.in_flight == 0

    async def there(self) -> bool:
        return not await self.away()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def process(server: RestartableValkey, **values: Any) -> AsyncIterator[Process]:
    one = Process(server.url, **{"for_s": 60.0, **values})
    try:
        yield one
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.signal(signal.SIGCONT)
        await one.outpost.aclose()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_who_never_reached_the_fleet_holds(own_valkey: RestartableValkey) -> None:
    async def test() -> None:
        own_valkey.stop()
        async with process(own_valkey) as one:
            await eventually(one.away)
            end = time.monotonic() + 2 * HORIZON_S
            while time.monotonic() < end:
                assert await one.unavailable()
            own_valkey.start()
            await eventually(one.there)
            assert not await one.unavailable()

    run(test())


def test_it_goes_on_alone_after_the_grants_of_others_and_goes_back_by_itself(
    own_valkey: RestartableValkey,
) -> None:
    async def test() -> None:
        async with process(own_valkey, requests_per_minute=240, burst_s=0) as one:
            before = await one.go()
            own_valkey.stop()
            await eventually(one.away)
            lost = time.monotonic()
            await eventually(one.alone)
            assert time.monotonic() - lost >= HORIZON_S - 0.1
            first, second = await one.go(), await one.go()
            assert second.delay - first.delay == pytest.approx(0.5, abs=0.1)
            assert await one.outpost.confirm(second) == 0
            assert await one.outpost.blocked_for(["p"]) == (0.0, "")
            with pytest.raises(AdmissionUnavailable):
                await one.outpost.settle(before, Rejected())
            own_valkey.start()
            await eventually(one.there)
            # What is not used yet is given back, and nothing of it goes to a fleet that did not grant it.
            assert await one.outpost.confirm(second) > 0
            await one.outpost.settle(first, Rejected())
            await one.outpost.settle(second, Abandoned())
            (status,) = await one.outpost.status()
            assert status.dimensions[0].ahead_s == 0
            # It came back empty: what it may have forgotten is let pass first.
            assert (await one.go()).delay == pytest.approx(5, abs=0.1)
            (status,) = await one.outpost.status()
            assert status.dimensions[0].ahead_s > 0

    run(test())


def test_it_holds_after_all_when_redis_stays_away(own_valkey: RestartableValkey) -> None:
    async def test() -> None:
        async with process(own_valkey, for_s=3.0) as one:
            await one.go()
            own_valkey.stop()
            await eventually(one.away)
            await eventually(one.alone)
            await eventually(one.unavailable)
            with pytest.raises(AdmissionUnavailable):
                await one.outpost.blocked_for(["p"])

    run(test())


def test_a_redis_that_hangs_is_gone_and_nobody_waits_for_it(own_valkey: RestartableValkey) -> None:
    async def test() -> None:
        async with process(own_valkey, max_concurrency=4) as one:
            await one.outpost.settle(await one.go(), Rejected())
            own_valkey.signal(signal.SIGSTOP)
            asking = asyncio.ensure_future(one.unavailable())
            await eventually(one.away)
            async with asyncio.timeout(0.5):
                assert await asking
            await eventually(one.alone)
            started = time.monotonic()
            go = await one.go()
            await one.outpost.leave(go.waiter)
            await one.outpost.settle(go, Rejected())
            assert time.monotonic() - started < 0.5
            own_valkey.signal(signal.SIGCONT)
            await eventually(one.there)
            # Whose decision came too late is in nobody's way: it has left its place and its lead.
            await eventually(one.nothing_taken)

    run(test())


def test_a_decision_that_comes_too_late_takes_no_lead_from_who_asked_again(
    own_valkey: RestartableValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outpost, "HANGS_S", 0.2)
    decided, arrives = asyncio.Event(), asyncio.Event()

    async def test() -> None:
        async with process(own_valkey) as one:
            await eventually(one.there)
            admit = one.fleet.admit

            async def late(claim: Claim) -> Decision:
                decision = await admit(claim)
                decided.set()
                await arrives.wait()
                return decision

            monkeypatch.setattr(one.fleet, "admit", late)
            asking = asyncio.ensure_future(one.admit(1))
            await decided.wait()
            own_valkey.signal(signal.SIGSTOP)
            with pytest.raises(AdmissionUnavailable):
                await asking
            own_valkey.signal(signal.SIGCONT)
            await eventually(one.there)
            monkeypatch.setattr(one.fleet, "admit", admit)
            again = await one.admit(1)
            assert isinstance(again, Go)
            (is_late,) = (
                task for task in one.outpost._tasks if "_too_late" in str(task.get_coro())
            )
            arrives.set()
            await is_late
            async with process(own_valkey, name="other") as other:
                assert isinstance(await other.admit(1), Follow)
                await one.outpost.settle(again, Rejected())
                await one.outpost.leave(again.waiter)
                assert isinstance(await other.admit(1), Go)
            assert not one.outpost._latest

    run(test())


def test_a_look_that_fails_by_a_fault_of_ours_is_not_the_last(
    own_valkey: RestartableValkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def logged() -> bool:
        return "look-failed why=ZeroDivisionError" in caplog.text

    async def test() -> None:
        async with process(own_valkey) as one:
            monkeypatch.setattr(one.outpost._alone, "know", lambda *_: 1 / 0)
            await eventually(logged)
            assert not await one.unavailable()
            lost = one.outpost._gone
            own_valkey.stop()
            await asyncio.wait_for(lost, PATIENCE_S)  # nobody but the look asks

    run(test())


def test_a_retry_after_heard_alone_or_before_is_obeyed_alone(own_valkey: RestartableValkey) -> None:
    async def test() -> None:
        async with process(own_valkey, max_concurrency=4) as one:
            before = await one.go()
            own_valkey.stop()
            await eventually(one.away)
            await eventually(one.alone)
            with pytest.raises(AdmissionUnavailable):
                await one.outpost.settle(before, RateLimited(retry_after=5.0, reason="busy"))
            held = await one.admit()
            assert isinstance(held, Wait)
            assert (held.blocked, held.reason) == (True, "p: busy")
            assert held.delay == pytest.approx(5.0, abs=0.5)

    run(test())


def test_who_waits_for_a_place_is_woken_by_the_one_that_gets_free(
    own_valkey: RestartableValkey,
) -> None:
    async def test() -> None:
        async with process(own_valkey, max_concurrency=2) as one:
            await one.go()
            own_valkey.stop()
            await eventually(one.away)
            await eventually(one.alone)
            go = await one.go()
            with one.outpost.wakes.bell(f"process.{one._number + 1}") as bell:
                assert isinstance(await one.admit(), Wait)
                await one.outpost.settle(go, Rejected())
                assert bell.is_set()

    run(test())
