"""An `Admission` on a real server, under a clock that the test turns, driven without `await`."""

from __future__ import annotations

import asyncio
import functools
import itertools
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import redis
from redis.client import PubSub

from llmtasks import settings
from llmtasks.admission import Admission, Claim, Follow, Go, Outcome, ProviderStatus, Wait, connect
from llmtasks.admission.decisions import Decision
from llmtasks.admission.scripts import compose

T = TypeVar("T")

#: Where the clock starts: any time, with a fraction that needs its digits.
START = 1_800_000_000.123456


def provider(name: str = "p", **values: Any) -> settings.Provider:
    """A provider's settings; OpenAI's accounting unless `kind` says otherwise."""
    defaults = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:1"}
    return settings.Provider(name=name, **(defaults | values))


class Fleet:
    """One key prefix, one clock, one Admission. Every attempt gets its own id unless named.

    `skew` is by how many seconds the server's clock is ahead of the callers'.
    Of a cluster it takes one node that has all slots: the clock is a key that scripts do not name.
    """

    def __init__(
        self,
        url: str,
        providers: Sequence[settings.Provider],
        *,
        ttl_s: int = 60,
        cluster: bool = False,
    ) -> None:
        self.prefix = f"test-{uuid.uuid4().hex}"
        self._runner = asyncio.Runner()
        #: For looking on, besides what the Admission uses.
        self.redis = connect(url)
        self.names = tuple(p.name for p in providers)
        clock_key = f"{self.prefix}-clock"
        self._clock_key = clock_key
        #: For the clock and what is told: without a loop it takes a tenth of the time.
        self._at_once = redis.Redis.from_url(url)
        self._subscriptions: list[PubSub] = []
        clock = f"local function clock() return tonumber(redis.call('GET', '{clock_key}')) end"
        self._connect = functools.partial(connect, url, cluster=cluster)
        self._values: dict[str, Any] = {
            "prefix": self.prefix,
            "providers": providers,
            "cache": settings.Cache(ttl_s=ttl_s),
            "scripts": compose(clock),
        }
        self.admission = Admission(self._connect(), **self._values)
        self._numbers = itertools.count()
        self.skew = 0.0
        self.set_clock(START)

    def close(self) -> None:
        self.run(self.admission.aclose())
        self.run(self.redis.aclose())
        for subscription in self._subscriptions:
            subscription.close()
        self._at_once.close()
        self._runner.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        # Not the runner's own way, which takes up and gives back Ctrl-C's handler every time.
        return self._runner.get_loop().run_until_complete(coroutine)

    def subscription(self) -> PubSub:
        """A new one; it hears, also when nobody keeps it, until the fleet is closed."""
        self._subscriptions.append(self._at_once.pubsub())
        return self._subscriptions[-1]

    def admit_elsewhere(self, claim: Claim) -> Decision:
        """As another process that asks for the first time."""

        async def ask() -> Decision:
            other = Admission(self._connect(), **self._values)
            try:
                return await other.admit(claim)
            finally:
                await other.aclose()

        return self.run(ask())

    def command(self, *command: Any) -> Any:
        """One Redis command, as the server answers it."""
        return self.run(self.redis.execute_command(*command))  # type: ignore[no-untyped-call]

    def set_clock(self, time: float) -> None:
        self.now = time
        self._at_once.set(self._clock_key, f"{time + self.skew:.6f}")

    def advance(self, seconds: float) -> None:
        self.set_clock(self.now + seconds)

    def claim(
        self,
        *,
        tokens: tuple[int, int] = (10, 10),
        attempt_id: str | None = None,
        **values: Any,
    ) -> Claim:
        return Claim(
            attempt_id=attempt_id or f"attempt-{next(self._numbers)}",
            waiter=values.pop("waiter", f"process.{next(self._numbers)}"),
            key=values.pop("key", None),
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            providers=values.pop("providers", self.names),
            **values,
        )

    def admit(self, claim: Claim | None = None, **values: Any) -> Decision:
        return self.run(self.admission.admit(claim or self.claim(**values)))

    def go(self, claim: Claim | None = None, **values: Any) -> Go:
        decision = self.admit(claim, **values)
        assert isinstance(decision, Go), decision
        return decision

    def wait(self, claim: Claim | None = None, **values: Any) -> Wait:
        decision = self.admit(claim, **values)
        assert isinstance(decision, Wait), decision
        return decision

    def follow(self, claim: Claim | None = None, **values: Any) -> Follow:
        decision = self.admit(claim, **values)
        assert isinstance(decision, Follow), decision
        return decision

    def settle(self, go: Go, outcome: Outcome) -> None:
        self.run(self.admission.settle(go, outcome))

    def leave(self, waiter: str, *, failed: bool = False) -> None:
        self.run(self.admission.leave(waiter, failed=failed))

    def renew(self) -> None:
        """What the process does every few seconds."""
        self.run(self.admission._leases.renew())

    def confirm(self, go: Go) -> float:
        return self.run(self.admission.confirm(go))

    def blocked_for(self) -> tuple[float, str]:
        return self.run(self.admission.blocked_for(self.names))

    def status(self, name: str) -> ProviderStatus:
        (found,) = (s for s in self.run(self.admission.status()) if s.name == name)
        return found

    def state(self) -> dict[bytes, bytes]:
        """Every key of the fleet as the server would dump it, byte for byte."""
        keys = sorted(self.command("KEYS", f"{self.prefix}:*"))
        return {key: self.command("DUMP", key) for key in keys}
