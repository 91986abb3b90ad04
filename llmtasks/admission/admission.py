"""The face of the room: one Redis decision per model call, one settlement after it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llmtasks import settings
from llmtasks.admission import answers, limits
from llmtasks.admission.calls import Calls
from llmtasks.admission.connection import Client, connect
from llmtasks.admission.decisions import (
    Claim,
    Decision,
    Dimension,
    Follow,
    Go,
    Hit,
    Outcome,
    ProviderState,
    ProviderStatus,
    Succeeded,
    Wait,
)
from llmtasks.admission.leases import Lease, Leases
from llmtasks.admission.pipelines import Command, told, ways
from llmtasks.admission.scripts import Scripts, compose
from llmtasks.admission.topologies import topology
from llmtasks.admission.wakes import Wakes
from llmtasks.errors import ConfigurationError

#: A grant with a longer delay is confirmed just before its call. Seconds; what may happen to a
#: provider within less is not worth a round trip of every call.
CONFIRM_ABOVE_S = 0.2

#: Those who follow are spread over so many seconds, or they would all come back at the same moment.
_SPREAD_S = 0.5


class Admission:
    """Admits, settles, and tells how the providers stand. Safe for any number of tasks of one loop.

    `redis` must give bytes (as `connect` makes it). Every method raises `AdmissionUnavailable` when
    it does not answer.
    """

    def __init__(
        self,
        redis: Client,
        *,
        prefix: str,
        providers: Sequence[settings.Provider],
        cache: settings.Cache,
        batching: settings.Batching | None = None,
        scripts: Scripts | None = None,
    ) -> None:
        self._to = ways(redis, batching)
        self._providers = {provider.name: provider for provider in providers}
        self._ttl_s = cache.ttl_s
        self.wakes = Wakes(self._to, prefix)
        self._calls = Calls(
            scripts or compose(),
            prefix=prefix,
            providers=providers,
            channels=self.wakes.channels,
        )
        self._leases = Leases(self._to)
        self._topology = topology(redis, self._to, self._calls, self._leases)
        #: When the state was made under which this process was last granted a call of a provider.
        self._births: dict[str, str] = {}
        self._waiting: dict[str, Sequence[settings.Provider]] = {}

    async def aclose(self) -> None:
        """Close the connections."""
        await self._leases.aclose()
        await self.wakes.aclose()
        await self._to.aclose()

    @property
    def on_its_own(self) -> bool:
        """Whether this process decides without the fleet now: never."""
        return False

    async def admit(self, claim: Claim) -> Decision:
        """The cached answer, a reserved place, or how long to wait.

        One round trip; on a cluster one for an answer or somebody to follow, else two, or three
        where all providers are out.

        A refusal reserves nothing. The same `attempt_id` again gets the same grant. A `Go` or a
        `Wait` may make the claim's waiter one that others follow, until its answer or `leave`.

        Raises:
            DocumentTooLarge: none of the claim's providers can ever take so many tokens.
            ConfigurationError: a provider of the claim is not configured, or there is none.
        """
        providers = limits.fitting(self._named(claim.providers), claim)
        key = None if claim.fresh else claim.key
        births = [self._births.get(provider.name, "") for provider in providers]
        reply, value = await self._topology.claim(claim, providers, births, key)
        if reply[0] == b"hit":
            completion = answers.decode(value)
            if completion is not None:
                await self._withdraw(claim.waiter)
                return Hit(completion)
            if value is not None:  # it cannot be read: as if there were none
                await told(self._to, ("DEL", self._calls.answer_key(claim.key or "")))
            return await self.admit(claim)
        if reply[0] == b"follow":
            await self._withdraw(claim.waiter)
            return Follow(float(reply[1]) + random.uniform(0, _SPREAD_S))
        if reply[0] == b"wait":
            self._waiting[claim.waiter] = providers
            return _wait(reply)
        self._waiting.pop(claim.waiter, None)
        return self._granted(claim, reply)

    def _granted(self, claim: Claim, reply: list[Any]) -> Go:
        """The grant; its place at the provider is held until it is settled."""
        name = _text(reply[1])
        self._births[name] = _text(reply[5])
        if reply[6] == 1:
            renewal = self._calls.hold(name, claim.attempt_id)
            self._leases.hold(claim.attempt_id, Lease(name, renewal))
        return Go(
            provider=name,
            delay=float(reply[2]),
            attempt_id=claim.attempt_id,
            waiter=claim.waiter,
            key=claim.key,
            fresh=claim.fresh,
            input_tokens=int(reply[3]),
            output_tokens=int(reply[4]),
            max_output_tokens=claim.output_tokens,
            task=claim.task,
            estimated=None if claim.exact else claim.input_tokens,
        )

    async def confirm(self, go: Go) -> float:
        """Seconds that the granted provider is blocked now; 0.0 when the call may be sent.

        For grants that had to wait: a Retry-After or an opened breaker that came after the grant
        does not wake its holder. When blocked, settle it `Abandoned` and ask again, a new attempt.
        """
        (reply,) = await self._look([self._provider(go.provider)], go.attempt_id)
        return float(reply[0])

    async def settle(self, go: Go, outcome: Outcome) -> None:
        """Book the outcome: quota, health, slot, cached answer. One round trip, counted once.

        On a cluster the answer is stored, and those who follow are woken, by another one at the
        same time. The first answer stays: whoever led, died or slept, and comes late overwrites
        none.
        """
        provider = self._provider(go.provider)
        await self._leases.release(go.attempt_id)
        store: Command | None = None
        if go.key is not None and isinstance(outcome, Succeeded) and outcome.answer is not None:
            await self._leases.release(go.waiter)
            value = answers.encode(outcome.answer)
            first = () if go.fresh else ("NX",)
            store = ("SET", self._calls.answer_key(go.key), value, "EX", self._ttl_s, *first)
        await self._topology.settle(provider, go, outcome, store)

    def charged(self, go: Go, outcome: Outcome) -> Mapping[str, float]:
        """What a call that ended so took of its provider's limits, by dimension. Asks nobody."""
        return limits.charged(self._provider(go.provider), go, outcome)

    async def leave(self, waiter: str, *, failed: bool = False) -> None:
        """The waiter's question has ended without an answer of its own: another may lead.

        `failed`: with an error that others may well meet too, not because its job or its process
        was stopped. Costs nothing for one that neither leads nor waits in a line.
        """
        # First what needs no Redis: nobody would ask a question that is led for ever.
        lead = await self._leases.release(waiter)
        await self._withdraw(waiter)
        if lead is not None:
            await told(self._to, self._calls.leave(waiter, lead.of, failed=failed))

    async def _withdraw(self, waiter: str) -> None:
        """Take the waiter out of the lines in which it may stand."""
        providers = self._waiting.pop(waiter, None)
        if providers is not None:
            await told(self._to, self._calls.withdraw(waiter, providers))

    async def blocked_for(self, providers: Sequence[str]) -> tuple[float, str]:
        """Seconds until any of them may be called as far as blocks go, and why; (0.0, "") for now.

        Blocks are a Retry-After, an open breaker, a refused key. Quota that is used up is none: it
        comes back by itself, little by little.
        """
        found = self._named(providers)
        replies = await self._look(found)
        seconds, index = min((float(reply[0]), index) for index, reply in enumerate(replies))
        if seconds <= 0:
            return 0.0, ""
        return seconds, f"{found[index].name}: {_text(replies[index][1])}"

    async def status(self) -> list[ProviderStatus]:
        """How every configured provider stands, in the order of the settings."""
        providers = list(self._providers.values())
        replies = await self._look(providers)
        return [
            _status(provider, reply) for provider, reply in zip(providers, replies, strict=True)
        ]

    async def _look(
        self, providers: Sequence[settings.Provider], attempt_id: str = ""
    ) -> list[list[Any]]:
        if not providers:
            return []
        (replies,) = await told(self._to, self._calls.look(providers, attempt_id))
        return cast("list[list[Any]]", replies)

    def _named(self, names: Sequence[str]) -> list[settings.Provider]:
        if not names:
            raise ConfigurationError("providers: none is configured for this call; add one")
        return [self._provider(name) for name in names]

    def _provider(self, name: str) -> settings.Provider:
        provider = self._providers.get(name)
        if provider is None:
            raise ConfigurationError(f"providers: none is named {name!r}")
        return provider


def fleet_of(configured: settings.Settings) -> Admission:
    """The admission that these settings name, not yet connected."""
    return Admission(
        connect(configured.redis_url, cluster=configured.redis.cluster),
        prefix=configured.redis.prefix,
        providers=configured.providers,
        cache=configured.cache,
        batching=configured.batching,
    )


def _wait(reply: list[Any]) -> Wait:
    return Wait(delay=float(reply[1]), reason=_text(reply[2]), blocked=reply[3] == 1)


def _status(provider: settings.Provider, reply: list[Any]) -> ProviderStatus:
    next_opening, why, state, in_flight, waiting, in_use, *ahead = reply
    ahead_s = [float(seconds) for seconds in ahead]
    free = max(0.0, max(ahead_s) - provider.burst_s)
    return ProviderStatus(
        name=provider.name,
        state=ProviderState(_text(state)),
        reason=_text(why),
        next_opening=float(next_opening),
        next_free=max(free, float(next_opening)),
        waiting=waiting,
        effective_ratio=float(in_use),
        in_flight=in_flight if provider.max_concurrency else None,
        max_concurrency=provider.max_concurrency,
        dimensions=tuple(
            Dimension(name=name, per_minute=limit, ahead_s=seconds)
            for name, limit, seconds in zip(
                limits.DIMENSIONS, limits.per_minute(provider), ahead_s, strict=True
            )
            if limit is not None
        ),
    )


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
