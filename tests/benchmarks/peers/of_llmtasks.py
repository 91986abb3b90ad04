"""Our own: one script decides over requests and tokens of every provider; a second one settles."""

from __future__ import annotations

import itertools
import os
import uuid

from peers import clients

from llmtasks import settings
from llmtasks.admission import Admission, Claim, Go, Succeeded, connect
from llmtasks.messages import Completion, FinishReason, Usage

_ANSWER = Completion(
    text="A summary of about two hundred characters. " * 5,
    finish_reason=FinishReason.STOP,
    provider="p0",
    model="m",
    usage=Usage(input_tokens=300, output_tokens=60),
)


def _fleet(url: str, count: int, batch_size: int | None) -> tuple[Admission, tuple[str, ...]]:
    providers = [
        settings.Provider(
            name=f"p{number}",
            kind="openai",
            model="m",
            base_url="http://127.0.0.1:1/v1",
            requests_per_minute=1e8,
            tokens_per_minute=1e11,
        )
        for number in range(count)
    ]
    batching = settings.Batching(**({} if batch_size is None else {"batch_size": batch_size}))
    fleet = Admission(
        connect(url),
        prefix="bench",
        providers=providers,
        cache=settings.Cache(),
        batching=batching,
    )
    return fleet, tuple(provider.name for provider in providers)


def _opened(
    count: int, *, settled: bool, shared: bool, batch_size: int | None = None
) -> clients.Open:
    async def opened(url: str) -> clients.Once:
        fleet, names = _fleet(url, count, batch_size)
        prefix = f"{os.getpid()}-{uuid.uuid4().hex[:16]}-"
        numbers = itertools.count()

        async def once() -> None:
            attempt = f"{prefix}{next(numbers)}"
            claim = Claim(
                attempt_id=attempt,
                waiter=fleet.wakes.new_waiter(),
                key=attempt if shared else None,
                input_tokens=300,
                output_tokens=128,
                providers=names,
            )
            go = await fleet.admit(claim)
            assert isinstance(go, Go), go
            if settled:
                outcome = Succeeded(usage=_ANSWER.usage, answer=_ANSWER if shared else None)
                await fleet.settle(go, outcome)

        return once

    return opened


OPERATIONS = {
    "admit": _opened(1, settled=False, shared=False),
    "admit-unbatched": _opened(1, settled=False, shared=False, batch_size=1),
    "admit-3": _opened(3, settled=False, shared=False),
    "call": _opened(1, settled=True, shared=False),
    "call-3": _opened(3, settled=True, shared=False),
    "cached": _opened(1, settled=True, shared=True),
}

if __name__ == "__main__":
    clients.main(OPERATIONS)
