"""A Redis Cluster: questions are spread over its nodes, and few round trips and no node too many decide."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import redis
from support.cluster import Cluster
from support.fleet import provider
from support.valkey import free_port

from llmtasks import settings
from llmtasks.admission import (
    Abandoned,
    Admission,
    Claim,
    Follow,
    Go,
    Hit,
    RateLimited,
    Succeeded,
    Wait,
    connect,
)
from llmtasks.admission.decisions import Decision
from llmtasks.errors import AdmissionUnavailable
from llmtasks.messages import Completion, FinishReason, Usage

T = TypeVar("T")

USAGE = Usage(input_tokens=5, output_tokens=7)
ANSWER = Completion(
    text="text", finish_reason=FinishReason.STOP, provider="a", model="m", usage=USAGE
)
ANSWERED = Succeeded(usage=USAGE, answer=ANSWER)
NODES = range(3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    one = Cluster(len(NODES))
    yield one
    one.close()


class Caller:
    """One process of a fleet on the cluster, under the servers' own clocks."""

    def __init__(self, cluster: Cluster, *providers: settings.Provider, prefix: str = "") -> None:
        self.prefix = prefix or f"test-{uuid.uuid4().hex}"
        self.cluster = cluster
        self.names = tuple(one.name for one in providers)
        self.fleet = self.holder("{llm}")
        self.admission = Admission(
            connect(cluster.url_of(self.fleet), cluster=True),
            prefix=self.prefix,
            providers=providers,
            cache=settings.Cache(),
        )
        self._numbers = itertools.count()

    def holder(self, key: str) -> int:
        return self.cluster.holder(key)

    def key_at(self, node: int) -> str:
        """A new question that a node holds."""
        keys = (uuid.uuid4().hex for _ in itertools.count())
        return next(key for key in keys if self.holder(f"{{{key}}}") == node)

    def elsewhere(self) -> int:
        """A node that does not hold the fleet's keys."""
        return next(node for node in NODES if node != self.fleet)

    def claim(self, key: str | None = None, **values: Any) -> Claim:
        return Claim(
            attempt_id=f"{uuid.uuid4().hex}",
            waiter=values.pop("waiter", self.admission.wakes.new_waiter()),
            key=key,
            input_tokens=1,
            output_tokens=1,
            providers=self.names,
            **values,
        )

    async def ask(self, key: str | None = None, **values: Any) -> Decision:
        return await self.admission.admit(self.claim(key, **values))

    async def go(self, key: str | None = None, **values: Any) -> Go:
        decision = await self.ask(key, **values)
        assert isinstance(decision, Go), decision
        return decision

    async def answer(self, key: str) -> None:
        await self.admission.settle(await self.go(key), ANSWERED)

    async def counted(self, work: Awaitable[T]) -> tuple[T, Counter[int]]:
        """What it came to, and the round trips to each node."""
        with contextlib.ExitStack() as closing:
            clients = [closing.enter_context(self.cluster.client(node)) for node in NODES]
            for client in clients:
                client.ping()  # what a connection begins with is not counted
            before = [_reads(client) for client in clients]
            value = await work
            # Each node has read the second of these questions too.
            after = [_reads(client) - 1 for client in clients]
        return value, Counter({node: after[node] - before[node] for node in NODES})


def _reads(client: redis.Redis) -> int:
    return int(client.info("stats")["total_reads_processed"])


def run(
    cluster: Cluster,
    providers: Sequence[settings.Provider],
    body: Callable[[Caller], Awaitable[None]],
) -> None:
    async def whole() -> None:
        one = Caller(cluster, *providers)
        try:
            await body(one)
        finally:
            await one.admission.aclose()

    asyncio.run(whole())


async def warmed(one: Caller) -> None:
    """Every node is connected and knows the scripts."""
    for node in NODES:
        key = one.key_at(node)
        await one.answer(key)
        assert isinstance(await one.ask(key), Hit)
        leader = await one.go(one.key_at(node))
        await one.admission.settle(leader, Abandoned())
        await one.admission.leave(leader.waiter)
    await one.admission.status()


def test_a_hit_is_one_round_trip_a_miss_at_most_four(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await warmed(one)
        there, fleet = one.elsewhere(), one.fleet
        key = one.key_at(there)
        go, trips = await one.counted(one.go(key))
        assert trips == {there: 1, fleet: 1, 3 - there - fleet: 0}
        follow, trips = await one.counted(one.ask(key))
        assert isinstance(follow, Follow)
        assert trips.total() == 1
        _, trips = await one.counted(one.admission.settle(go, ANSWERED))
        assert trips == {there: 1, fleet: 1, 3 - there - fleet: 0}
        hit, trips = await one.counted(one.ask(key))
        assert hit == Hit(ANSWER)
        assert trips == {there: 1, fleet: 0, 3 - there - fleet: 0}

    run(cluster, [provider("a")], body)


def test_without_a_question_to_share_nothing_is_dearer_than_on_a_server(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await warmed(one)
        go, trips = await one.counted(one.go())
        assert trips.total() == trips[one.fleet] == 1
        _, trips = await one.counted(one.admission.settle(go, ANSWERED))
        assert trips.total() == trips[one.fleet] == 1

    run(cluster, [provider("a")], body)


def test_answers_are_spread_and_what_the_fleet_agrees_on_is_together(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        keys = [uuid.uuid4().hex for _ in range(60)]
        await asyncio.gather(*(one.answer(key) for key in keys))
        hits = await asyncio.gather(*(one.ask(key) for key in keys))
        assert hits == [Hit(ANSWER)] * 60
        for node in NODES:
            with cluster.client(node) as client:
                kept = [key.decode() for key in client.keys(f"{one.prefix}:*")]
            assert sum(key.startswith(f"{one.prefix}:c:") for key in kept) > 5
            assert any("{llm}" in key for key in kept) == (node == one.fleet)

    run(cluster, [provider("a", requests_per_minute=60_000, max_concurrency=100)], body)


def test_who_is_blocked_leads_nobody_and_is_not_asked_after_one_by_one(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await warmed(one)
        await one.admission.settle(await one.go(), RateLimited(retry_after=60.0))
        key = one.key_at(one.elsewhere())
        first, trips = await one.counted(one.ask(key))
        assert isinstance(first, Wait)
        assert first.blocked
        assert trips.total() == 3
        for _ in range(3):
            next_one, trips = await one.counted(one.ask(key))
            assert isinstance(next_one, Wait)
            assert next_one.blocked
            assert next_one.delay > 55.0
            assert next_one.reason == "a: rate limited"
            assert trips.total() == 2

    run(cluster, [provider("a")], body)


def test_after_a_block_one_leads_again_at_once(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await one.admission.settle(await one.go(), RateLimited(retry_after=0.3))
        key = one.key_at(one.elsewhere())
        with cluster.client(one.elsewhere()) as client:
            client.set(f"{one.prefix}:n:{{{key}}}", 1)
        blocked = await one.ask(key)
        assert isinstance(blocked, Wait)
        await asyncio.sleep(blocked.delay)
        await one.go(key)
        assert isinstance(await one.ask(key), Follow)

    run(cluster, [provider("a")], body)


def test_many_at_once_share_one_call_wherever_the_question_is(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        for node in NODES:
            key = one.key_at(node)
            decisions = await asyncio.gather(*(one.ask(key) for _ in range(100)))
            assert Counter(type(found) for found in decisions) == {Go: 1, Follow: 99}
            (go,) = (found for found in decisions if isinstance(found, Go))
            with one.admission.wakes.bell(key) as bell:
                await rung(one, key)
                await one.admission.settle(go, ANSWERED)
                assert await bell.rings_within(5.0)

    run(cluster, [provider("a")], body)


async def rung(one: Caller, key: str) -> None:
    """Wait until this process hears what is called anywhere in the cluster."""
    process = one.admission.wakes.new_waiter().split(".")[0]
    with one.admission.wakes.bell(f"try-{key}") as bell:
        async with asyncio.timeout(20.0):
            while not await bell.rings_within(0.05):
                for node in NODES:
                    with contextlib.suppress(Exception), one.cluster.client(node) as client:
                        client.publish(f"{one.prefix}:wake:{process}", f"try-{key}")


def test_weights_and_limits_hold_for_processes_that_share_a_cluster(cluster: Cluster) -> None:
    providers = [
        provider("a", requests_per_minute=600, burst_s=0, weight=2),
        provider("b", requests_per_minute=600, burst_s=0, weight=1),
    ]

    async def body(one: Caller) -> None:
        other = Caller(cluster, *providers, prefix=one.prefix)
        began = time.monotonic()
        found = await asyncio.gather(
            *(caller.ask(uuid.uuid4().hex) for _ in range(15) for caller in (one, other))
        )
        took = time.monotonic() - began
        await other.admission.aclose()
        goes = [go for go in found if isinstance(go, Go)]
        assert len(goes) == 30
        by_provider = {name: sorted(g.delay for g in goes if g.provider == name) for name in "ab"}
        for delays in by_provider.values():
            # Ten a second, one after the other; those asked later have less to wait.
            assert all(b - a > 0.1 - took - 0.001 for a, b in itertools.pairwise(delays))
            assert delays[-1] >= 0.1 * (len(delays) - 1) - took
        assert len(by_provider["a"]) == 20

    run(cluster, providers, body)


def test_a_moved_slot_is_found_at_its_new_node(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await warmed(one)
        old, new = one.elsewhere(), one.fleet
        key = one.key_at(old)
        move(cluster, key, old, new)
        try:
            go = await one.go(key)
            assert isinstance(await one.ask(key), Follow)
            await one.admission.settle(go, ANSWERED)
            assert await one.ask(key) == Hit(ANSWER)
        finally:
            with cluster.client(new) as client:
                client.delete(*(f"{one.prefix}:{kind}:{{{key}}}" for kind in "cf"))
            move(cluster, key, new, old)

    run(cluster, [provider("a")], body)


def test_while_a_slot_is_being_moved_its_questions_hold(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await warmed(one)
        old, new = one.elsewhere(), one.fleet
        key = one.key_at(old)
        with cluster.client(old) as giving, cluster.client(new) as taking:
            slot = giving.execute_command("CLUSTER KEYSLOT", f"{{{key}}}")
            names = [client.execute_command("CLUSTER MYID").decode() for client in (giving, taking)]
            taking.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
            giving.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
            try:
                with pytest.raises(AdmissionUnavailable):
                    await one.ask(key)
                assert isinstance(await one.ask(one.key_at(old)), Go)
            finally:
                for client in (giving, taking):
                    client.execute_command("CLUSTER SETSLOT", slot, "STABLE")
        assert isinstance(await one.ask(key), Go)

    run(cluster, [provider("a")], body)


def move(cluster: Cluster, key: str, old: int, new: int) -> None:
    """Give a slot in which nothing is to another node."""
    with cluster.client(new) as taking, cluster.client(old) as giving:
        slot = taking.execute_command("CLUSTER KEYSLOT", f"{{{key}}}")
        name = taking.execute_command("CLUSTER MYID").decode()
        for client in (taking, giving):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", name)


def test_a_dead_node_fails_its_own_questions_alone_and_serves_again(cluster: Cluster) -> None:
    providers = [provider("a", max_concurrency=40)]

    async def body(one: Caller) -> None:
        await warmed(one)
        dead = one.elsewhere()
        alive = 3 - dead - one.fleet
        lost, kept = one.key_at(dead), one.key_at(alive)
        await one.answer(kept)
        go = await one.go(lost)
        cluster.kill(dead)
        try:
            with pytest.raises(AdmissionUnavailable):
                await one.ask(lost)
            assert await one.ask(kept) == Hit(ANSWER)
            beginner = Caller(cluster, *providers, prefix=one.prefix)
            assert await beginner.ask(kept) == Hit(ANSWER)
            await beginner.admission.aclose()
            with pytest.raises(AdmissionUnavailable):
                await one.admission.settle(go, ANSWERED)
            (status,) = await one.admission.status()
            assert status.in_flight == 0
            asked = [one.ask(key) for key in (lost, kept, one.key_at(one.fleet)) for _ in range(20)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            kinds = Counter(type(one) for one in found)
            assert kinds == {AdmissionUnavailable: 20, Hit: 20, Go: 1, Follow: 19}
        finally:
            cluster.start(dead)
            cluster.await_whole()
        await one.answer(lost)
        assert await one.ask(lost) == Hit(ANSWER)

    run(cluster, providers, body)


def test_without_the_fleet_s_node_nothing_starts_and_who_leads_goes_on(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await warmed(one)
        key, known = one.key_at(one.elsewhere()), one.key_at(one.elsewhere())
        await one.answer(known)
        claim = one.claim(key)
        cluster.kill(one.fleet)
        try:
            with pytest.raises(AdmissionUnavailable):
                await one.admission.admit(claim)
            assert await one.ask(known) == Hit(ANSWER)
            assert isinstance(await one.ask(key), Follow)
        finally:
            cluster.start(one.fleet)
            cluster.await_whole()
        assert isinstance(await one.admission.admit(claim), Go)
        assert isinstance(await one.ask(key), Follow)
        await one.admission.leave(claim.waiter)
        assert isinstance(await one.ask(key), Go)

    run(cluster, [provider("a")], body)


def test_wake_up_calls_come_again_when_the_node_that_told_them_is_gone(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await rung(one, "before")
        process = one.admission.wakes.new_waiter().split(".")[0]
        channel = f"{one.prefix}:wake:{process}"
        (told_by,) = (node for node in NODES if listens(cluster, node, channel))
        cluster.kill(told_by)
        try:
            await rung(one, "while it is away")
        finally:
            cluster.start(told_by)
            cluster.await_whole()

    run(cluster, [provider("a")], body)


def listens(cluster: Cluster, node: int, channel: str) -> bool:
    with cluster.client(node) as client:
        return bool(client.pubsub_numsub(channel)[0][1])


def test_a_cluster_that_is_not_there_is_an_outage() -> None:
    async def ask() -> None:
        one = Admission(
            connect(f"redis://127.0.0.1:{free_port()}/0", cluster=True),
            prefix="test",
            providers=[provider("a")],
            cache=settings.Cache(),
        )
        for _ in range(2):
            with pytest.raises(AdmissionUnavailable):
                await one.status()
        await one.aclose()

    asyncio.run(ask())


def test_a_slot_that_nobody_serves_is_an_outage(cluster: Cluster) -> None:
    async def body(one: Caller) -> None:
        await warmed(one)
        node = one.elsewhere()
        key = one.key_at(node)
        with contextlib.ExitStack() as closing:
            clients = [closing.enter_context(cluster.client(each)) for each in NODES]
            slot = clients[0].execute_command("CLUSTER KEYSLOT", f"{{{key}}}")
            for client in clients:
                client.execute_command("CLUSTER DELSLOTS", slot)
            try:
                for _ in range(2):
                    with pytest.raises(AdmissionUnavailable):
                        await one.ask(key)
                assert isinstance(await one.ask(one.key_at(one.fleet)), Go)
            finally:
                clients[node].execute_command("CLUSTER ADDSLOTS", slot)
        cluster.await_whole()
        assert isinstance(await one.ask(key), Go)

    run(cluster, [provider("a")], body)
