"""The cache and the way to Redis: a hit costs nothing, an outage is told as what it is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from support.fleet import Fleet, provider
from support.valkey import Valkey, free_port, running_valkey

from llmtasks import settings
from llmtasks.admission import Admission, Claim, Go, Hit, Rejected, Succeeded, connect
from llmtasks.errors import AdmissionUnavailable, ConfigurationError
from llmtasks.messages import Completion, FinishReason, Usage

MakeFleet = Callable[..., Fleet]


@pytest.fixture(params=["server", "cluster"])
def fleet(request: pytest.FixtureRequest) -> MakeFleet:
    """Everything here holds wherever the keys are."""
    made: MakeFleet = request.getfixturevalue(f"{request.param}_fleet")
    return made


USAGE = Usage(input_tokens=5, output_tokens=7)
SECRET = "the text of a document"


def completion(text: str = SECRET) -> Completion:
    return Completion(
        text=text, finish_reason=FinishReason.STOP, provider="a", model="m", usage=USAGE
    )


def limited() -> settings.Provider:
    return provider("a", requests_per_minute=60, max_concurrency=4, burst_s=0)


def answer(f: Fleet, key: str, text: str = SECRET) -> None:
    f.settle(f.go(key=key, fresh=True), Succeeded(usage=USAGE, answer=completion(text)))


def test_the_second_asker_gets_the_first_one_s_answer_and_reserves_nothing(
    fleet: MakeFleet,
) -> None:
    f = fleet(limited())
    answer(f, "k")
    before = f.state()
    for _ in range(100):
        assert f.admit(key="k") == Hit(completion())
    assert f.state() == before


def test_a_hit_is_given_even_while_everything_is_blocked_or_full(fleet: MakeFleet) -> None:
    f = fleet(limited())
    answer(f, "k")
    while isinstance(f.admit(), Go):
        pass
    assert isinstance(f.admit(key="k"), Hit)


def test_an_answer_that_may_not_be_kept_is_not(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    go = f.go(key="k")
    f.settle(go, Succeeded(usage=USAGE))
    f.leave(go.waiter, failed=True)
    f.settle(f.go(), Succeeded(usage=USAGE, answer=completion()))
    assert isinstance(f.admit(key="k"), Go)
    assert not f.command("KEYS", f"{f.prefix}:c:*")


def test_a_fresh_question_ignores_the_known_answer_and_replaces_it(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    answer(f, "k", "old")
    answer(f, "k", "new")
    assert f.admit(key="k") == Hit(completion("new"))


def test_an_answer_is_kept_for_its_time_only(fleet: MakeFleet) -> None:
    f = fleet(provider("a"), ttl_s=77)
    answer(f, "k")
    assert 70 < f.command("TTL", f"{f.prefix}:c:{{k}}") <= 77


def test_a_broken_answer_is_a_miss_that_the_next_answer_mends(fleet: MakeFleet) -> None:
    f = fleet(limited())
    f.command("SET", f"{f.prefix}:c:{{k}}", b"\x00broken")
    go = f.go(key="k")
    f.settle(go, Succeeded(usage=USAGE, answer=completion()))
    assert f.admit(key="k") == Hit(completion())


def test_nothing_but_providers_outlives_its_time(fleet: MakeFleet) -> None:
    f = fleet(limited())
    f.settle(f.go(), Rejected())
    f.go()
    lasting = {key for key in f.state() if f.command("TTL", key) < 0}
    assert lasting == {f"{f.prefix}:{{llm}}:{kind}:a".encode() for kind in "ps"}


def test_one_round_trip_each_for_admit_and_settle(server_fleet: MakeFleet) -> None:
    f = server_fleet(limited())
    answer(f, "warm")

    def trips(work: Callable[[], object]) -> int:
        """What the server read, but for the second of these questions."""
        before = f.run(f.redis.info("stats"))["total_reads_processed"]
        work()
        after = f.run(f.redis.info("stats"))["total_reads_processed"]
        return int(after - before - 1)

    assert trips(lambda: f.admit(key="warm")) == 1
    claim = f.claim(key="k")
    assert trips(lambda: f.go(claim)) == 1
    go = f.go(claim)  # the same grant once more
    assert trips(lambda: f.settle(go, Succeeded(usage=USAGE, answer=completion()))) == 1


def test_a_server_that_forgot_the_scripts_is_taught_them(fleet: MakeFleet) -> None:
    f = fleet(limited())
    for _ in range(2):
        f.command("SCRIPT", "FLUSH")
        go = f.go(key="k")
        f.command("SCRIPT", "FLUSH")
        f.settle(go, Succeeded(usage=USAGE))
        f.command("SCRIPT", "FLUSH")
        f.leave(go.waiter)
        f.command("SCRIPT", "FLUSH")
        assert f.blocked_for() == (0.0, "")
    assert f.status("a").in_flight == 0


def test_a_provider_nobody_configured_is_named(fleet: MakeFleet) -> None:
    f = fleet(provider("a"))
    with pytest.raises(ConfigurationError, match="'b'"):
        f.admit(providers=("b",))
    with pytest.raises(ConfigurationError):
        f.admit(providers=())


CLAIM = Claim(
    attempt_id="x", waiter="p.x", key="k", input_tokens=1, output_tokens=1, providers=("a",)
)


def admission(url: str) -> Admission:
    return Admission(connect(url), prefix="test", providers=[limited()], cache=settings.Cache())


def test_a_server_that_is_not_there_is_an_outage() -> None:
    async def ask() -> None:
        one = admission(f"redis://127.0.0.1:{free_port()}/0")
        with pytest.raises(AdmissionUnavailable):
            await one.admit(CLAIM)
        with pytest.raises(AdmissionUnavailable):
            await one.status()
        await one.aclose()

    asyncio.run(ask())


def test_a_server_without_memory_is_an_outage_and_the_answer_stays_untold() -> None:
    async def ask() -> None:
        with running_valkey() as own:
            one = admission(own.url)
            go = await one.admit(CLAIM)
            assert isinstance(go, Go)
            async with connect(own.url) as client:
                await client.config_set("maxmemory", "1")
            with pytest.raises(AdmissionUnavailable) as caught:
                await one.settle(go, Succeeded(usage=USAGE, answer=completion()))
            assert SECRET not in str(caught.value)
            await one.aclose()

    asyncio.run(ask())


def test_a_restarted_and_empty_server_serves_on() -> None:
    async def ask() -> None:
        port = free_port()
        with running_valkey(port) as own:
            one = admission(own.url)
            go = await one.admit(CLAIM)
            assert isinstance(go, Go)
        with running_valkey(port):
            await one.settle(go, Succeeded(usage=USAGE, answer=completion()))
            assert await one.admit(replace(CLAIM, attempt_id="y")) == Hit(completion())
            await one.aclose()

    asyncio.run(ask())


def test_the_server_s_own_clock_paces_real_callers(valkey: Valkey) -> None:
    async def ask() -> None:
        client = connect(valkey.url)
        one = Admission(
            client,
            prefix="test-real-clock",
            providers=[provider("a", requests_per_minute=600, burst_s=0)],
            cache=settings.Cache(),
        )
        claims = [
            Claim(
                attempt_id=f"r{n}",
                waiter=f"p.{n}",
                key=None,
                input_tokens=1,
                output_tokens=1,
                providers=("a",),
            )
            for n in range(20)
        ]
        grants = await asyncio.gather(*(one.admit(claim) for claim in claims))
        delays = sorted(grant.delay for grant in grants if isinstance(grant, Go))
        assert len(delays) == 20
        assert 1.0 < delays[-1] <= 1.9
        assert all(b - a > 0.05 for a, b in itertools.pairwise(delays))
        await client.aclose()

    asyncio.run(ask())
