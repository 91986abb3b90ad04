"""The scripts' calls: which keys each takes and how its arguments are packed. Pure.

Keys, all under the fleet's prefix; those of one call lie in one hash slot, but for an answer's on a single
server. `{llm}` holds what the fleet agrees on, and what belongs to a question is spread by its key:

    <prefix>:{llm}:p:<provider>   hash: what is known of a provider (lua/state.lua); never expires
    <prefix>:{llm}:s:<provider>   sorted set: its calls in flight; never expires
    <prefix>:{llm}:l:<provider>   and `w`, `t`: who waits for it (lua/line.lua), while anybody does
    <prefix>:{llm}:g:<attempt>    a grant, until no replay of it can come
    <prefix>:c:{<key>}            a cached answer
    <prefix>:f:{<key>}            who is asking for it now (lua/flight.lua), until their leases end
    <prefix>:n:{<key>}            on a cluster: a note that all providers are out (lua/seek.lua)

and the channels of lua/wake.lua, `<prefix>:wake:<process id>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llmtasks import settings
from llmtasks.admission import limits
from llmtasks.admission.decisions import (
    Abandoned,
    Claim,
    Disabled,
    Failed,
    GivenUp,
    Go,
    Outcome,
    RateLimited,
    Rejected,
    Succeeded,
)
from llmtasks.admission.scripts import Call, Script, Scripts

_MAX_REASON = 200

#: State, slots and line of a provider, in the order in which the scripts take them.
_KINDS = ("p", "s", "l", "w", "t")

_OUTCOMES: dict[type[Outcome], str] = {
    Succeeded: "succeeded",
    RateLimited: "limited",
    Failed: "failed",
    Rejected: "rejected",
    Disabled: "disabled",
    GivenUp: "given up",
    Abandoned: "abandoned",
}

Providers = Sequence[settings.Provider]


class Calls:
    """Those of one fleet. `channels` is what the names of its wake-up channels begin with."""

    def __init__(
        self, scripts: Scripts, *, prefix: str, providers: Providers, channels: str
    ) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._channels = channels.encode()
        self._keys_of = {
            provider.name: tuple(f"{prefix}:{{llm}}:{kind}:{provider.name}" for kind in _KINDS)
            for provider in providers
        }
        self._packed = {
            (provider.name, tried): _pack_provider(provider, tried=tried)
            for provider in providers
            for tried in (False, True)
        }

    def answer_key(self, key: str) -> str:
        """Where a question's cached answer is."""
        return f"{self._prefix}:c:{{{key}}}"

    def note_key(self, key: str) -> str:
        """Where it is noted that nobody can answer a question now."""
        return f"{self._prefix}:n:{{{key}}}"

    def admit(
        self, claim: Claim, providers: Providers, births: Sequence[str], *, key: str | None = None
    ) -> Call:
        """With its question's key: in two hash slots."""
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
            births,
            claim.task,
        ]
        keys = [self._grant_key(claim.attempt_id), *self._keys(providers)]
        if key is not None:
            keys += [self.answer_key(key), self._flight_key(key)]
        return self._waking(self._scripts.admit, keys, arguments)

    def seek(self, claim: Claim, key: str, *, looked: bool) -> Call:
        """In the question's slot."""
        keys = (self.answer_key(key), self._flight_key(key), self.note_key(key))
        return self._waking(self._scripts.seek, keys, [claim.waiter, claim.priority, looked])

    def settle(
        self, provider: settings.Provider, go: Go, outcome: Outcome, *, shared: bool = False
    ) -> Call:
        """`shared`: with the question's flight, which an answer ends: in two hash slots."""
        arguments = [
            go.attempt_id,
            go.provider,
            _OUTCOMES[type(outcome)],
            limits.changes(provider, go, outcome),
            limits.rates(provider),
            float(outcome.retry_after) if isinstance(outcome, RateLimited | Failed) else 0.0,
            _reason(outcome),
            go.waiter,
            go.key or "",
            limits.counted(go, outcome),
            limits.stated(provider, outcome),
            go.task,
            limits.output_bound(provider, go, outcome),
        ]
        keys = [self._grant_key(go.attempt_id), *self._keys([provider])]
        if shared and go.key is not None:
            keys.append(self._flight_key(go.key))
        packed = bytes(self._packed[go.provider, False])
        return self._waking(self._scripts.settle, keys, arguments, packed)

    def land(self, waiter: str, key: str) -> Call:
        """In the question's slot."""
        return self._waking(self._scripts.land, (self._flight_key(key),), [waiter, key])

    def leave(self, waiter: str, key: str, *, failed: bool) -> Call:
        """In the question's slot."""
        arguments = [waiter, key, int(failed)]
        return self._waking(self._scripts.leave, (self._flight_key(key),), arguments)

    def renew(self, waiter: str, key: str) -> Call:
        """In the question's slot."""
        keys = (self._flight_key(key),)
        return Call(self._scripts.renew, keys, (waiter.encode(), self._channels))

    def hold(self, provider: str, attempt_id: str) -> Call:
        """In the fleet's slot, as all below."""
        return Call(self._scripts.hold, self._keys_of[provider][:2], (attempt_id.encode(),))

    def withdraw(self, waiter: str, providers: Providers) -> Call:
        """The waiter's places in the providers' lines."""
        packed = [self._packed[provider.name, False] for provider in providers]
        return self._waking(self._scripts.withdraw, self._keys(providers), [waiter, packed])

    def look(self, providers: Providers, attempt_id: str = "") -> Call:
        """How providers stand."""
        configured = [limits.rates(provider) for provider in providers]
        arguments = (attempt_id.encode(), msgspec.msgpack.encode(configured))
        return Call(self._scripts.look, self._keys(providers), arguments)

    def _waking(
        self, script: Script, keys: Sequence[str], arguments: list[Any], *more: bytes
    ) -> Call:
        """A call that may wake somebody."""
        return Call(script, keys, (msgspec.msgpack.encode(arguments), self._channels, *more))

    def _grant_key(self, attempt_id: str) -> str:
        return f"{self._prefix}:{{llm}}:g:{attempt_id}"

    def _flight_key(self, key: str) -> str:
        return f"{self._prefix}:f:{{{key}}}"

    def _keys(self, providers: Iterable[settings.Provider]) -> list[str]:
        """State, slots and line of each provider."""
        return [key for provider in providers for key in self._keys_of[provider.name]]


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


def _reason(outcome: Outcome) -> str:
    """Why a provider is out, in one short line; it ends up in job rows and in Redis."""
    reason = getattr(outcome, "reason", "")
    return " ".join(reason.split())[:_MAX_REASON]
