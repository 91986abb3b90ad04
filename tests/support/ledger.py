"""What the providers did, held against what the database says: every call that was paid twice has its cause.

Pure. A `line` is one of the simulator's log, a `row` one of `provider_calls`; times are seconds since the
epoch on one machine's clock, documents are known by the tag that their text carries.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Seconds by which two processes may write down the same moment differently, on a busy machine.
SLACK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A fault that may cost a paid answer: between two times, for the calls of `provider` (None: of all) on
    behalf of `documents` (None: of all).
    """

    what: str
    start: float
    end: float
    provider: str | None = None
    documents: frozenset[str] | None = None

    def hit(self, call: PaidCall) -> bool:
        """Whether the call was in flight, or its answer not stored yet, while this happened."""
        if self.provider not in (None, call.provider):
            return False
        if self.documents is not None:
            # Held by the worker that was struck: begun before its end.
            return call.document in self.documents and call.at <= self.end + SLACK_S
        return call.at <= self.end + SLACK_S and call.end >= self.start - SLACK_S


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PaidCall:
    """A call for which the provider did the work. `whole`: its answer was sent to the last byte."""

    at: float
    end: float
    provider: str
    document: str
    whole: bool
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found. `extra` calls were paid beyond one for a document, and `unexplained` are those of which
    more than one for the same document cannot have been lost. Whole answers that the database does not know
    are `unrecorded`, some of them without a fault that took them away. `unknown_rows` are in the database
    and not in a provider's log. `by_cause`: calls that were struck, by what struck them.
    """

    paid: int
    extra: int
    unexplained: Sequence[str]
    unrecorded: int
    unrecorded_unexplained: Sequence[PaidCall]
    unknown_rows: Sequence[str]
    by_cause: Mapping[str, int] = field(default_factory=dict)


def paid_calls(provider: str, log: Iterable[Mapping[str, Any]]) -> list[PaidCall]:
    """Of a provider's log: those it granted and let through to an answer."""
    return [
        PaidCall(
            at=line["at"],
            end=line["at"] + line["duration_s"],
            provider=provider,
            document=line["tag"],
            whole=line["whole"],
            request_id=line["request_id"],
        )
        for line in log
        if line["granted"] and line["fault"] in ("", "slow")
    ]


def audit(
    calls: Sequence[PaidCall],
    recorded: Iterable[tuple[str, str]],
    struck: Sequence[Struck],
    *,
    timeout_s: float,
) -> Audit:
    """Hold the providers' calls against the rows, `(provider, request id)`, and the faults that were made.

    A call that was given up at its deadline is its own cause for another one.
    """
    rows = set(recorded)
    known = {(call.provider, call.request_id) for call in calls}
    by_document: defaultdict[str, list[PaidCall]] = defaultdict(list)
    for call in sorted(calls):
        by_document[call.document].append(call)
    causes: Counter[str] = Counter()
    unexplained = []
    for its in by_document.values():
        found = [_cause(call, struck, timeout_s) for call in its]
        causes.update(cause for cause in found if cause is not None)
        # One call brought the answer that is kept; each other one must have lost its own to a fault.
        if found.count(None) > 1:
            unexplained += [str(call) for call, cause in zip(its, found, strict=True) if not cause]
    missing = [
        call for call in calls if call.whole and (call.provider, call.request_id) not in rows
    ]
    return Audit(
        paid=len(calls),
        extra=len(calls) - len(by_document),
        unexplained=unexplained,
        unrecorded=len(missing),
        unrecorded_unexplained=[
            call for call in missing if _cause(call, struck, timeout_s) is None
        ],
        unknown_rows=sorted(f"{provider} {request}" for provider, request in rows - known),
        by_cause=dict(causes),
    )


def _cause(call: PaidCall, struck: Sequence[Struck], timeout_s: float) -> str | None:
    """The fault that took the answer of this call away, or may have, if there was one."""
    if not call.whole and call.end - call.at >= timeout_s - SLACK_S:
        return "deadline"
    return next((one.what for one in struck if one.hit(call)), None)
