"""The one face of whoever decides on calls: the fleet, or a process that may go on alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from llmtasks.admission.decisions import Claim, Decision, Go, Outcome, ProviderStatus
from llmtasks.admission.wakes import Wakes


class Decider(Protocol):
    """See `Admission`, which says what each of these promises, and `Outpost`."""

    wakes: Wakes

    @property
    def on_its_own(self) -> bool:
        """Whether this process decides without the fleet now. Any thread may ask."""

    async def admit(self, claim: Claim) -> Decision:
        """The cached answer, a reserved place, or how long to wait."""

    async def confirm(self, go: Go) -> float:
        """Seconds that the granted provider is blocked now; 0.0 when the call may be sent."""

    async def settle(self, go: Go, outcome: Outcome) -> None:
        """Book the outcome of what was granted."""

    def charged(self, go: Go, outcome: Outcome) -> Mapping[str, float]:
        """What a call that ended so took of its provider's limits, by dimension."""

    async def leave(self, waiter: str, *, failed: bool = False) -> None:
        """The waiter's question has ended without an answer of its own."""

    async def blocked_for(self, providers: Sequence[str]) -> tuple[float, str]:
        """Seconds until any of them may be called as far as blocks go, and why."""

    async def status(self) -> list[ProviderStatus]:
        """How every configured provider stands for the fleet."""

    async def aclose(self) -> None:
        """Close the connections."""
