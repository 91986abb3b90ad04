"""Single flight: of all who ask one question one leads, and nothing that happens to it stops the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet import Fleet, provider
from support.valkey import RestartableValkey, Valkey

from llmtasks.admission import (
    Failed,
    Follow,
    Go,
    Hit,
    RateLimited,
    Rejected,
    Succeeded,
    Wait,
    connect,
    leases,
)
from llmtasks.admission.pipelines import Command, Ways, ask, told, ways
from llmtasks.admission.scripts import Call
from llmtasks.admission.wakes import Bell, Wakes
from llmtasks.errors import AdmissionUnavailable
from llmtasks.messages import Completion, FinishReason, Usage

MakeFleet = Callable[..., Fleet]


@pytest.fixture(params=["server", "cluster"])
def fleet(request: pytest.FixtureRequest) -> MakeFleet:
    """Everything here holds wherever the keys are."""
    made: MakeFleet = request.getfixturevalue(f"{request.param}_fleet")
    return made


USAGE = Usage(input_tokens=5, output_tokens=7)
#: Seconds, as lua/flight.lua has it.
LEASE = 10
#: Seconds by which a follower's timer is spread.
SPREAD = 0.5


def completion(text: str = "an answer") -> Completion:
    return Completion(
        text=text, finish_reason=FinishReason.STOP, provider="a", model="m", usage=USAGE
    )


def answered(text: str = "an answer") -> Succeeded:
    return Succeeded(usage=USAGE, answer=completion(text))


def quota(f: Fleet) -> dict[bytes, bytes]:
    return {key: value for key, value in f.state().items() if b"{llm}" in key}


def bells(f: Fleet, *names: str) -> contextlib.AbstractContextManager[Bell]:
    return f.admission.wakes.bell(*names)


# Who leads


def test_one_leads_and_the_others_follow_and_hold_nothing(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, max_concurrency=4))
    f.go(key="k")
    before = quota(f)
    for _ in range(50):
        assert LEASE <= f.follow(key="k").delay <= LEASE + SPREAD
    assert quota(f) == before


def test_an_answer_makes_hits_of_all_who_follow(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    go = f.go(key="k")
    followers = [f.claim(key="k") for _ in range(5)]
    assert all(isinstance(f.admit(claim), Follow) for claim in followers)
    f.settle(go, answered())
    assert all(f.admit(claim) == Hit(completion()) for claim in followers)


def test_another_question_is_never_followed(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    f.go(key="k")
    assert isinstance(f.admit(key="k2"), Go)
    assert isinstance(f.admit(key=None), Go)


def test_the_same_claim_again_leads_on_with_the_same_grant(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60))
    claim = f.claim(key="k")
    assert f.go(claim) == f.go(claim)
    f.follow(key="k")


def test_a_leader_that_waits_for_its_turn_leads_and_may_ask_again(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0))
    while isinstance(f.admit(), Go):
        pass
    claim = f.claim(key="k")
    f.wait(claim)
    f.follow(key="k")
    f.advance(9)
    assert isinstance(f.admit(replace(claim, attempt_id="next")), Go)
    f.follow(key="k")


def test_a_leader_leads_on_while_it_tries_again(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    claim = f.claim(key="k")
    for attempt in range(3):
        go = f.go(replace(claim, attempt_id=f"try-{attempt}"))
        f.settle(go, Failed())
        f.follow(key="k")


def test_who_is_blocked_leads_nobody(fleet: MakeFleet) -> None:
    """Otherwise all would follow one that is about to be parked."""
    f = fleet(provider("a"))
    f.settle(f.go(), RateLimited(retry_after=60))
    for _ in range(3):
        assert f.wait(key="k").blocked
    f.advance(60)
    f.go(key="k")


def test_a_call_under_way_is_followed_also_while_its_provider_is_blocked(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    go = f.go(key="k")
    f.settle(f.go(), RateLimited(retry_after=60))
    f.follow(key="k")
    f.settle(go, answered())
    assert isinstance(f.admit(key="k"), Hit)


def test_a_fresh_question_neither_follows_nor_leads_and_its_answer_counts(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    leading = f.go(key="k")
    fresh = f.go(key="k", fresh=True)
    f.settle(fresh, answered("newest"))
    assert f.admit(key="k") == Hit(completion("newest"))
    f.settle(leading, answered("older"))
    assert f.admit(key="k") == Hit(completion("newest"))
    fresh = f.go(key="other", fresh=True)
    f.go(key="other")


# How it ends


@pytest.mark.parametrize("failed", [False, True])
def test_a_leader_that_ends_without_an_answer_hands_on(fleet: MakeFleet, *, failed: bool) -> None:
    f = fleet(provider("a"))
    go = f.go(key="k")
    f.follow(key="k")
    f.settle(go, Rejected())
    f.leave(go.waiter, failed=failed)
    f.go(key="k")


def test_of_those_who_stopped_or_died_only_one_follows_at_a_time(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    for _ in range(3):
        go = f.go(key="k")
        f.follow(key="k")
        f.leave(go.waiter)
    for _ in range(3):
        f.go(key="k")
        f.follow(key="k")
        f.advance(LEASE)


def test_a_question_that_nobody_can_answer_takes_rounds_and_not_a_queue(fleet: MakeFleet) -> None:
    """Each failure lets one more try, so 100 jobs are through after 7 rounds of calls, not 100."""
    f = fleet(provider("a"))
    waiting, rounds = 100, []
    while waiting:
        leading = [go for _ in range(waiting) if isinstance(go := f.admit(key="k"), Go)]
        for go in leading:
            f.settle(go, Succeeded(usage=USAGE))
            f.leave(go.waiter, failed=True)
        waiting -= len(leading)
        rounds.append(len(leading))
    assert rounds == [1, 2, 4, 8, 16, 32, 37]


def test_an_answer_after_failures_makes_it_one_at_a_time_again(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    f.leave(f.go(key="k").waiter, failed=True)
    first, second = f.go(key="k"), f.go(key="k")
    f.follow(key="k")
    f.settle(first, answered("first"))
    f.settle(second, answered("second"))
    assert f.admit(key="k") == Hit(completion("first"))
    f.command("DEL", f"{f.prefix}:c:{{k}}")
    f.go(key="k")
    f.follow(key="k")


def test_what_is_urgent_does_not_wait_for_a_leader_that_waits(
    server_fleet: MakeFleet,
) -> None:
    f = server_fleet(provider("a", requests_per_minute=60, burst_s=0), provider("b"))
    while isinstance(f.admit(providers=("a",)), Go):
        pass
    slow = f.claim(key="k", providers=("a",))
    f.wait(slow)
    f.follow(key="k")
    go = f.go(key="k", priority=5)
    f.follow(slow)
    f.follow(key="k", priority=9)  # a call that is paid already is worth waiting for
    f.settle(go, answered())
    assert isinstance(f.admit(slow), Hit)


def test_nothing_is_left_of_a_flight(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    for name, end in (
        ("k", lambda go: f.settle(go, answered())),
        ("l", lambda go: f.leave(go.waiter)),
    ):
        go = f.go(key=name)
        f.follow(key=name)
        assert 0 < f.command("PTTL", f"{f.prefix}:f:{{{name}}}") <= LEASE * 1000
        end(go)
        assert not f.command("EXISTS", f"{f.prefix}:f:{{{name}}}")


# Leases


def test_a_dead_leader_is_followed_until_its_lease_ends_and_no_longer(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    f.go(key="k")
    f.advance(LEASE - 1)
    assert 1.0 <= f.follow(key="k").delay <= 1.0 + SPREAD
    f.advance(1)
    f.go(key="k")
    f.follow(key="k")


def test_a_renewed_leader_leads_for_as_long_as_its_call_takes(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    go = f.go(key="k")
    for second in range(0, 300, 3):
        f.advance(3)
        if second % 30 == 0:
            f.command("SCRIPT", "FLUSH")
        f.run(f.admission._leases.renew())
        f.follow(key="k")
    f.settle(go, answered())
    assert isinstance(f.admit(key="k"), Hit)


def test_a_server_that_lost_everything_is_told_who_leads(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    f.go(key="k")
    f.command("DEL", f"{f.prefix}:f:{{k}}")
    f.run(f.admission._leases.renew())
    f.follow(key="k")


def test_who_leaves_while_the_server_is_away_leads_no_more(own_valkey: RestartableValkey) -> None:
    f = Fleet(own_valkey.url, [provider("a", requests_per_minute=60, burst_s=0)])
    try:
        while isinstance(f.admit(), Go):
            pass
        f.wait(waiter="process.first", key="k")
        own_valkey.stop()
        with pytest.raises(AdmissionUnavailable):
            f.leave("process.first")
        own_valkey.start()
        f.set_clock(f.now)
        f.run(f.admission._leases.renew())
        assert isinstance(f.admit(waiter="process.second", key="k"), Go)
    finally:
        f.close()


def test_a_sleeper_that_wakes_up_cannot_take_the_lead_back(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    sleeper = f.go(key="k")
    f.advance(LEASE + 1)
    second = f.go(key="k")
    f.run(f.admission._leases.renew())
    f.leave(sleeper.waiter)  # leads no more, so it cannot hand on what is another's
    f.follow(key="k")
    f.settle(second, answered())
    assert isinstance(f.admit(key="k"), Hit)


def test_leases_are_renewed_on_after_one_that_could_not_be(
    fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    monkeypatch.setattr(leases, "_AGAIN_S", 0.01)
    f = fleet(provider("a"))
    flight = f"{f.prefix}:f:{{k}}"

    async def renewed() -> None:
        held = f.admission._leases
        await f.admission.admit(f.claim(key="k"))
        held.hold("broken", leases.Lease("broken", None))  # type: ignore[arg-type]
        async with asyncio.timeout(20.0):
            while "leases-not-renewed" not in caplog.text:  # noqa: ASYNC110  # a log
                await asyncio.sleep(0.01)
            await held.release("broken")
            await f.redis.delete(flight)
            while not await f.redis.exists(flight):  # noqa: ASYNC110  # the server's state
                await asyncio.sleep(0.01)

    f.run(renewed())


def test_a_lead_that_was_lost_and_won_again_is_renewed(
    fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal's reply says nothing of what was won while it was on its way."""
    f = fleet(provider("a"))
    f.go(key="k", waiter="process.first")
    f.advance(LEASE)
    f.admit_elsewhere(f.claim(key="k", waiter="process.second"))

    async def late(to: Ways, steps: Sequence[Call | Command]) -> list[Any]:
        replies = await ask(to, steps)
        await told(to, f.admission._calls.leave("process.second", "k", failed=False))
        assert isinstance(await f.admission.admit(f.claim(key="k", waiter="process.first")), Go)
        return replies

    with monkeypatch.context() as patched:
        patched.setattr(leases, "ask", late)
        f.renew()
    for _ in range(LEASE):
        f.advance(2)
        f.renew()
        f.follow(key="k")


@pytest.mark.parametrize("order", ["sleeper first", "sleeper last"])
def test_a_sleeper_overwrites_nothing(fleet: MakeFleet, order: str) -> None:
    f = fleet(provider("a"))
    sleeper = f.go(key="k")
    f.advance(LEASE)
    second = f.go(key="k")
    late = [(sleeper, "slept"), (second, "newer")]
    if order == "sleeper last":
        late.reverse()
    for go, text in late:
        f.settle(go, answered(text))
    assert f.admit(key="k") == Hit(completion(late[0][1]))


def test_a_lease_of_another_clock_stops_nobody(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    f.advance(3600)
    f.go(key="k")
    f.advance(-3600)
    f.go(key="k")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.sampled_from(["ask", "ask", "ask", "answer", "fail", "stop", "die", "late"]), max_size=40
    )
)
def test_whatever_happens_few_lead_and_somebody_does(fleet: MakeFleet, steps: list[str]) -> None:
    """At most one more leads than have failed; who may not lead is told to follow a living one."""
    f = fleet(provider("a"))
    leading: list[Go] = []
    dead: list[Go] = []
    failures = 0
    done = False
    for step in steps:
        if step == "ask":
            decision = f.admit(key="k")
            assert isinstance(decision, Hit) == done
            if isinstance(decision, Go):
                leading.append(decision)
                assert len(leading) <= 1 + failures
            elif isinstance(decision, Follow):
                assert len(leading) == 1 + failures
            continue
        if step == "late" and dead:
            f.settle(dead.pop(), answered("late"))
            done = True
        elif step == "die":
            f.advance(LEASE)
            dead, leading, failures = [*dead, *leading], [], 0
            f.command("DEL", f"{f.prefix}:f:{{k}}")  # the server's own clock would
        elif leading:
            go = leading.pop()
            if step == "answer":
                f.settle(go, answered())
                done = True
            else:
                f.leave(go.waiter, failed=step == "fail")
                failures += step == "fail"


# Waking


def heard(f: Fleet, names: tuple[str, ...], act: Callable[[], object]) -> bool:
    """Whether a bell of these names rings once `act` was done by somebody of the fleet."""

    async def listen() -> bool:
        with bells(f, *names) as bell:
            await subscribed(f)
            await act()
            return await bell.rings_within(2.0)

    return f.run(listen())


async def subscribed(f: Fleet) -> None:
    channels = f"{f.admission.wakes.channels}*"
    while not await f.redis.pubsub_channels(channels):  # noqa: ASYNC110  # the server's state
        await asyncio.sleep(0.01)


def test_followers_are_woken_by_the_answer_and_by_a_leader_that_leaves(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    process = f.admission.wakes
    for end in (
        lambda go: f.admission.settle(go, answered()),
        lambda go: f.admission.leave(go.waiter),
        lambda go: f.admission.leave(go.waiter, failed=True),
    ):
        key = f"k{id(end)}"
        go = f.go(key=key)
        f.follow(key=key, waiter=process.new_waiter())
        assert heard(f, (key,), lambda end=end, go=go: end(go))


def test_a_fresh_answer_wakes_those_who_follow_and_the_leader_that_waits(fleet: MakeFleet) -> None:
    f = fleet(provider("a", requests_per_minute=60, burst_s=0), provider("b"))
    while isinstance(f.admit(providers=("a",)), Go):
        pass
    waiting = f.claim(key="k", providers=("a",), waiter=f.admission.wakes.new_waiter())
    f.wait(waiting)
    fresh = f.go(key="k", fresh=True, providers=("b",))
    assert heard(f, ("k",), lambda: f.admission.settle(fresh, answered()))
    assert isinstance(f.admit(waiting), Hit)


def test_a_leader_that_is_replaced_is_woken(
    server_fleet: MakeFleet,
) -> None:
    f = server_fleet(provider("a", requests_per_minute=60, burst_s=0), provider("b"))
    while isinstance(f.admit(providers=("a",)), Go):
        pass
    slow = f.claim(key="k", providers=("a",), waiter=f.admission.wakes.new_waiter())
    f.wait(slow)
    urgent = f.claim(key="k", priority=9)
    assert heard(f, (slow.waiter,), lambda: f.admission.admit(urgent))


def test_a_ring_between_asking_and_waiting_is_not_lost(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))

    async def ask() -> None:
        with bells(f, "name") as bell:
            f.admission.wakes.ring("name")
            assert await bell.rings_within(0.0)
            bell.clear()
            assert not await bell.rings_within(0.01)

    f.run(ask())


def test_only_the_named_are_woken_and_all_of_them(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))

    async def ask() -> list[bool]:
        with bells(f, "one", "both") as one, bells(f, "two", "both") as two:
            f.admission.wakes.ring("one")
            first = [one.is_set(), two.is_set()]
            f.admission.wakes.ring("both")
            return [*first, two.is_set()]

    assert f.run(ask()) == [True, False, True]


def test_a_subscription_outlives_its_server(own_valkey: RestartableValkey) -> None:
    async def listen() -> None:
        redis = connect(own_valkey.url)
        wakes = Wakes(ways(redis), "test")

        async def hears() -> None:
            process = wakes.new_waiter().split(".")[0]
            async with asyncio.timeout(20.0):
                with wakes.bell("name") as bell:
                    while not await bell.rings_within(0.1):
                        with contextlib.suppress(Exception):
                            await redis.publish(f"test:wake:{process}", "name")

        await hears()
        own_valkey.stop()
        own_valkey.start()
        await hears()
        await wakes.aclose()
        await redis.aclose()

    asyncio.run(listen())


def test_a_subscription_outlives_a_message_that_is_none_of_ours(valkey: Valkey) -> None:
    async def listen() -> None:
        redis = connect(valkey.url)
        wakes = Wakes(ways(redis), "test")
        channel = f"test:wake:{wakes.new_waiter().split('.')[0]}"
        async with asyncio.timeout(20.0):
            with wakes.bell("name") as bell:
                while not await redis.publish(channel, b"\xff\xfe"):
                    await bell.rings_within(0.02)
                while not await bell.rings_within(0.05):
                    await redis.publish(channel, "name")
        await wakes.aclose()
        await redis.aclose()

    asyncio.run(listen())


def test_nobody_listens_who_asks_nothing(fleet: MakeFleet, valkey: Valkey) -> None:
    """A command that only looks opens no subscription."""
    f = fleet(provider("a"))
    f.status("a")
    assert f.command("PUBSUB", "CHANNELS", f"{f.admission.wakes.channels}*") == []
    assert isinstance(f.admit(key="k"), Go | Wait)
