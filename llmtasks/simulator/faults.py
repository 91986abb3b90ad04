"""Which fault strikes which request."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, get_args

from llmtasks.simulator.config import DoorKind, ErrorKind, Fault

if TYPE_CHECKING:
    from llmtasks.simulator.protocol import Ask

DOOR_KINDS: Final = frozenset(get_args(DoorKind))
ERROR_KINDS: Final = frozenset(get_args(ErrorKind))
_STREAM_ONLY: Final = frozenset({"cut_stream", "stall"})


class ActiveFault:
    """A fault that was set: its id, and how often it has struck."""

    __slots__ = ("_random", "fault", "fault_id", "set_at", "struck")

    def __init__(self, fault_id: int, fault: Fault, *, set_at: float, seed: int) -> None:
        self.fault_id = fault_id
        self.fault = fault
        self.set_at = set_at
        self.struck = 0
        self._random = random.Random(f"{seed}/{fault_id}")

    @property
    def kind(self) -> str:
        """The fault's kind."""
        return self.fault.kind

    def wants(self, ask: Ask, account: str, now: float) -> bool:
        """Whether this request is to be struck. The dice are thrown only if all else holds."""
        fault = self.fault
        if fault.next is not None and self.struck >= fault.next:
            return False
        if not fault.fits(ask.api, ask.model, account):
            return False
        if fault.kind in _STREAM_ONLY and not ask.stream:
            return False
        if not self._in_time(now):
            return False
        if fault.match is not None and not any(fault.match in text for text in ask.texts):
            return False
        return fault.rate is None or self._random.random() < fault.rate

    def refuses(self, account: str, now: float) -> bool:
        """Whether this key is refused whatever it asks, so that it may not list models either."""
        fault = self.fault
        whatever = fault.next is None and fault.rate is None and fault.match is None
        return (
            fault.kind == "401"
            and whatever
            and fault.selectors in ((None, None, None), (None, None, account))
            and self._in_time(now)
        )

    def _in_time(self, now: float) -> bool:
        start = self.set_at + self.fault.after_s
        end = float("inf") if self.fault.for_s is None else start + self.fault.for_s
        return start <= now < end


class FaultPlan:
    """The faults that are set, in order; the first that wants a request gets it."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._next_id = 1
        self.active: list[ActiveFault] = []

    def add(self, faults: Iterable[Fault], now: float) -> list[ActiveFault]:
        """Sets further faults."""
        added = []
        for fault in faults:
            added.append(ActiveFault(self._next_id, fault, set_at=now, seed=self._seed))
            self._next_id += 1
        self.active += added
        return added

    def remove(self, fault_id: int | None = None) -> int:
        """Ends one fault, or all of them; how many there were."""
        before = len(self.active)
        self.active = [one for one in self.active if fault_id not in (None, one.fault_id)]
        return before - len(self.active)

    def choose(self, ask: Ask, account: str, now: float) -> ActiveFault | None:
        """The fault for this request. The caller counts it (`struck += 1`) when it really strikes:
        a request that the quota refuses uses up no fault.
        """
        for one in self.active:
            if one.wants(ask, account, now):
                return one
        return None

    def refuses(self, account: str, now: float) -> bool:
        """Whether this key is refused whatever it asks. Uses up no fault."""
        return any(one.refuses(account, now) for one in self.active)
