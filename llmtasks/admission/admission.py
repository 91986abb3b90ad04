"""The face of the room: one Redis decision per model call, one settlement after it.

Keys, all under the fleet's prefix; `{llm}` keeps those of one script in one hash slot:

    <prefix>:{llm}:p:<provider>   hash: what is known of a provider (lua/state.lua); never expires
    <prefix>:{llm}:s:<provider>   sorted set: its calls in flight; never expires
    <prefix>:{llm}:l:<provider>   and `w`, `t`: who waits for it (lua/line.lua), while anybody does
    <prefix>:{llm}:g:<attempt>    a grant, until no replay of it can come
    <prefix>:c:{<key>}            a cached answer
    <prefix>:f:{<key>}            who is asking for it now (lua/flight.lua), until their leases end

and the channels of lua/wake.lua, `<prefix>:wake:<process id>`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from llmtasks import settings
from llmtasks.admission import answers, limits
from llmtasks.admission.connection import translated
from llmtasks.admission.decisions import (
    Abandoned,
    Claim,
    Decision,
    Dimension,
    Disabled,
    Failed,
    Follow,
    GivenUp,
    Go,
    Hit,
    Outcome,
    ProviderState,
    ProviderStatus,
    RateLimited,
    Rejected,
    Succeeded,
    Wait,
)
from llmtasks.admission.leases import Lease, Leases
from llmtasks.admission.pipelines import Command, Pipelines
from llmtasks.admission.scripts import Script, Scripts, compose
from llmtasks.admission.wakes import Wakes
from llmtasks.errors import ConfigurationError

#: A grant with a longer delay is confirmed just before its call. Seconds; what may happen to a
#: provider within less is not worth a round trip of every call.
CONFIRM_ABOVE_S = 0.2

#: Those who follow are spread over so many seconds, or they would all come back at the same moment.
_SPREAD_S = 0.5

_MAX_REASON = 200

#: State, slots and line of a provider, in the order in which the scripts take them.
_KEYS = ("p", "s", "l", "w", "t")

_KINDS: dict[type[Outcome], str] = {
    Succeeded: "succeeded",
    RateLimited: "limited",
    Failed: "failed",
    Rejected: "rejected",
    Disabled: "disabled",
    GivenUp: "given up",
    Abandoned: "abandoned",
}


class Admission:
    """Admits, settles, and tells how the providers stand. Safe for any number of tasks of one loop.

    `redis` must give bytes (as `connect` makes it). Every method raises `AdmissionUnavailable` when
    it does not answer.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str,
        providers: Sequence[settings.Provider],
        cache: settings.Cache,
        scripts: Scripts | None = None,
    ) -> None:
        self._redis = redis
        self._pipelines = Pipelines(redis)
        self._prefix = prefix
        self._providers = {provider.name: provider for provider in providers}
        self._ttl_s = cache.ttl_s
        self._scripts = scripts or compose()
        self.wakes = Wakes(redis, prefix)
        self._leases = Leases(redis)
        #: When the state was made under which this process was last granted a call of a provider.
        self._births: dict[str, str] = {}
        self._waiting: dict[str, Sequence[settings.Provider]] = {}
        self._keys_of = {
            name: tuple(self._key(kind, name) for kind in _KEYS) for name in self._providers
        }
        self._packed = {
            (provider.name, tried): _pack_provider(provider, tried=tried)
            for provider in providers
            for tried in (False, True)
        }

    async def aclose(self) -> None:
        """Close the connections."""
        await self._leases.aclose()
        await self.wakes.aclose()
        await self._pipelines.aclose()
        await self._redis.aclose()

    async def admit(self, claim: Claim) -> Decision:
        """One round trip: the cached answer, a reserved place, or how long to wait.

        A refusal reserves nothing. The same `attempt_id` again gets the same grant. A `Go` or a
        `Wait` may make the claim's waiter one that others follow, until its answer or `leave`.

        Raises:
            DocumentTooLarge: none of the claim's providers can ever take so many tokens.
            ConfigurationError: a provider of the claim is not configured, or there is none.
        """
        providers = limits.fitting(self._named(claim.providers), claim)
        key = None if claim.fresh else claim.key
        reply, value = await self._ask(claim, providers, key=key)
        if reply[0] == b"hit":
            completion = answers.decode(value)
            if completion is not None:
                await self._withdraw(claim.waiter)
                return Hit(completion)
            if value is not None:  # it cannot be read: as if there were none
                with translated():
                    await self._redis.delete(self._question_key("c", claim.key or ""))
            return await self.admit(claim)
        if reply[0] == b"follow":
            await self._withdraw(claim.waiter)
            return Follow(float(reply[1]) + random.uniform(0, _SPREAD_S))
        if key is not None and reply[-1] == 1:
            self._lead(claim.waiter, key)
        if reply[0] == b"wait":
            self._waiting[claim.waiter] = providers
            return _wait(reply)
        self._waiting.pop(claim.waiter, None)
        return self._granted(claim, reply)

    def _lead(self, waiter: str, key: str) -> None:
        """Go on leading until the question has ended."""
        keys = (self._question_key("f", key),)
        arguments = (waiter, self.wakes.channels)
        self._leases.hold(waiter, Lease(key, self._scripts.renew, keys, arguments))

    def _granted(self, claim: Claim, reply: list[Any]) -> Go:
        """The grant; its place at the provider is held until it is settled."""
        name = _text(reply[1])
        self._births[name] = _text(reply[5])
        if reply[6] == 1:
            keys = self._keys_of[name][:2]
            held = Lease(name, self._scripts.hold, keys, (claim.attempt_id,))
            self._leases.hold(claim.attempt_id, held)
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

        The first answer stays: whoever led, died or slept, and comes late overwrites none.
        """
        provider = self._provider(go.provider)
        await self._leases.release(go.attempt_id)
        keys = [self._key("g", go.attempt_id), *self._keys([provider])]
        arguments = [
            go.attempt_id,
            go.provider,
            _KINDS[type(outcome)],
            limits.changes(provider, go, outcome),
            limits.rates(provider),
            float(outcome.retry_after) if isinstance(outcome, RateLimited | Failed) else 0.0,
            _reason(outcome),
            go.waiter,
            go.key or "",
            limits.ratio(go, outcome),
            limits.stated(provider, outcome),
            go.task,
            limits.output_bound(provider, go, outcome),
        ]
        packed = [
            msgspec.msgpack.encode(arguments),
            self.wakes.channels.encode(),
            bytes(self._packed[go.provider, False]),
        ]
        answer = outcome.answer if isinstance(outcome, Succeeded) else None
        if go.key is None or answer is None:
            await self._run(self._scripts.settle, keys, packed)
            return
        await self._leases.release(go.waiter)
        keys.append(self._question_key("f", go.key))
        # Before the script, which wakes those who wait for it.
        store = ("SET", self._question_key("c", go.key), answers.encode(answer), "EX", self._ttl_s)
        first = () if go.fresh else ("NX",)
        await self._run(self._scripts.settle, keys, packed, before=(*store, *first))

    async def leave(self, waiter: str, *, failed: bool = False) -> None:
        """The waiter's question has ended without an answer of its own: another may lead.

        `failed`: with an error that others may well meet too, not because its job or its process
        was stopped. Costs nothing for one that neither leads nor waits in a line.
        """
        # First what needs no Redis: nobody would ask a question that is led for ever.
        lead = await self._leases.release(waiter)
        await self._withdraw(waiter)
        if lead is None:
            return
        arguments = msgspec.msgpack.encode([waiter, lead.of, int(failed)])
        await self._run(self._scripts.leave, lead.keys, [arguments, self.wakes.channels.encode()])

    async def _withdraw(self, waiter: str) -> None:
        """Take the waiter out of the lines in which it may stand."""
        providers = self._waiting.pop(waiter, None)
        if providers is None:
            return
        packed = [self._packed[provider.name, False] for provider in providers]
        arguments = [msgspec.msgpack.encode([waiter, packed]), self.wakes.channels.encode()]
        await self._run(self._scripts.withdraw, self._keys(providers), arguments)

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

    async def _ask(
        self, claim: Claim, providers: Sequence[settings.Provider], *, key: str | None
    ) -> tuple[list[Any], bytes | None]:
        """The admit script's reply, and the cached value if there is one."""
        arguments = [
            claim.attempt_id,
            limits.costs(claim.input_tokens, claim.output_tokens),
            [self._packed[provider.name, provider.name in claim.tried] for provider in providers],
            key is not None,
            claim.waiter,
            claim.priority,
            claim.tenant,
            claim.returned,
            claim.exact,
            [self._births.get(provider.name, "") for provider in providers],
            claim.task,
        ]
        keys = [self._key("g", claim.attempt_id), *self._keys(providers)]
        packed = [msgspec.msgpack.encode(arguments), self.wakes.channels.encode()]
        if key is None:
            return (await self._run(self._scripts.admit, keys, packed))[0], None
        cached = self._question_key("c", key)
        keys += [cached, self._question_key("f", key)]
        # The value after the decision: one that has just come is not needed, one that has just gone
        # makes the claim ask again. A large value never passes through a script.
        reply, value = await self._run(self._scripts.admit, keys, packed, after=("GET", cached))
        return reply, value

    async def _look(
        self, providers: Sequence[settings.Provider], attempt_id: str = ""
    ) -> list[list[Any]]:
        if not providers:
            return []
        configured = [limits.rates(provider) for provider in providers]
        arguments = [attempt_id.encode(), msgspec.msgpack.encode(configured)]
        (replies,) = await self._run(self._scripts.look, self._keys(providers), arguments)
        return cast("list[list[Any]]", replies)

    async def _run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[bytes],
        *,
        before: Command | None = None,
        after: Command | None = None,
    ) -> list[Any]:
        """The replies of a script and the commands around it, in one round trip.

        A server that does not know the script (new, or flushed) is taught it and asked again.
        """
        call: Command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        commands = [command for command in (before, call, after) if command is not None]
        with translated():
            replies = await self._pipelines.run(commands)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                await self._redis.script_load(script.text)
                replies = await self._pipelines.run(commands)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies

    def _named(self, names: Sequence[str]) -> list[settings.Provider]:
        if not names:
            raise ConfigurationError("providers: none is configured for this call; add one")
        return [self._provider(name) for name in names]

    def _provider(self, name: str) -> settings.Provider:
        provider = self._providers.get(name)
        if provider is None:
            raise ConfigurationError(f"providers: none is named {name!r}")
        return provider

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}:{{llm}}:{kind}:{name}"

    def _keys(self, providers: Iterable[settings.Provider]) -> list[str]:
        """State, slots and line of each provider."""
        return [key for provider in providers for key in self._keys_of[provider.name]]

    def _question_key(self, kind: str, key: str) -> str:
        return f"{self._prefix}:{kind}:{{{key}}}"


def _pack_provider(provider: settings.Provider, *, tried: bool) -> msgspec.Raw:
    """What the admit script needs to know of a provider.

    Sent with every call: the worker's settings decide, and no old ones can linger in Redis.
    """
    packed = msgspec.msgpack.encode(
        [
            provider.name,
            provider.weight,
            tried,
            provider.burst_s,
            limits.rates(provider),
            provider.max_concurrency or 0,
            limits.lasting(provider),
            limits.counts_real_output(provider),
        ]
    )
    return msgspec.Raw(packed)


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


def _reason(outcome: Outcome) -> str:
    """Why a provider is out, in one short line; it ends up in job rows and in Redis."""
    reason = getattr(outcome, "reason", "")
    return " ".join(reason.split())[:_MAX_REASON]


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
