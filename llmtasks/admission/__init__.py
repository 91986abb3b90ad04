"""What the fleet agrees on, in Redis: who may call which provider when, health, cached answers.

A caller goes through these steps:

    decision = await admission.admit(claim)     # Hit: done. Wait, Follow: ask again when woken.
    await asyncio.sleep(decision.delay)             # Go
    if decision.delay > CONFIRM_ABOVE_S and await admission.confirm(decision) > 0:
        await admission.settle(decision, Abandoned())   # blocked meanwhile: ask again, anew
    ...call the provider...
    await admission.settle(decision, Succeeded(usage=..., answer=...))

and in the end `await admission.leave(claim.waiter)`, if it was not an answer of its own.
"""

from __future__ import annotations

from llmtasks.admission.admission import CONFIRM_ABOVE_S, Admission, fleet_of
from llmtasks.admission.alone import Alone
from llmtasks.admission.connection import HANGS_S, connect
from llmtasks.admission.decider import Decider
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
from llmtasks.admission.outpost import Outpost, decider_of
from llmtasks.admission.wakes import Bell

__all__ = [
    "CONFIRM_ABOVE_S",
    "HANGS_S",
    "Abandoned",
    "Admission",
    "Alone",
    "Bell",
    "Claim",
    "Decider",
    "Decision",
    "Dimension",
    "Disabled",
    "Failed",
    "Follow",
    "GivenUp",
    "Go",
    "Hit",
    "Outcome",
    "Outpost",
    "ProviderState",
    "ProviderStatus",
    "RateLimited",
    "Rejected",
    "Succeeded",
    "Wait",
    "connect",
    "decider_of",
    "fleet_of",
]
