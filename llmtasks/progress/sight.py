"""What a reader makes of a stream's entries. Pure: it says when what was shown so far is void.

An answer begins anew when its job is taken over, or asks a second time; its older pieces are void then. A
worker that was stopped, and goes on after others took its job, still writes: its fence is older. Each piece
says where in the answer it stands, so that one that is missing is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What an entry says."""

    BEGIN = "begin"
    TEXT = "text"
    END = "end"


#: The fields of an entry in Redis.
KIND: Final = "kind"
FENCE: Final = "fence"
OFFSET: Final = "offset"
TEXT: Final = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry. `offset` is how many characters of the answer come before its text, or its end."""

    id: str
    kind: Kind
    fence: int
    offset: int = 0
    text: str = ""


def entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """An entry as Redis gives it."""
    said = {name.decode(): value.decode() for name, value in fields.items()}
    return Entry(
        id=entry_id.decode(),
        kind=Kind(said[KIND]),
        fence=int(said[FENCE]),
        offset=int(said.get(OFFSET, 0)),
        text=said.get(TEXT, ""),
    )


def order(entry_id: str) -> tuple[int, int]:
    """By which ids come one after the other.

    Raises:
        ValueError: it is no id of an entry.
    """
    milliseconds, _, number = entry_id.partition("-")
    if not all(
        part.isascii() and part.isdigit() and len(part) <= _DIGITS
        for part in (milliseconds, number)
    ):
        raise ValueError("no id of an entry")
    return int(milliseconds), int(number)


#: Of a number of 64 bits.
_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reset:
    """What was shown so far is void."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The job's row has ended; it says how."""


Event = Piece | Reset | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a reader has shown: `heard` characters of the answer of the claim with this fence.

    `lost`: a piece is missing, and nothing more is shown of this answer until it begins anew. `ended`: its
    writer said that its job has ended.
    """

    fence: int = 0
    heard: int = 0
    lost: bool = False
    ended: bool = False

    @property
    def whole(self) -> bool:
        """Whether all of an answer was shown."""
        return self.ended and not self.lost and self.heard > 0


def resumed(last: Entry) -> Sight:
    """What was shown to a reader who has seen everything up to this entry, which was shown."""
    return Sight(fence=last.fence, heard=last.offset + len(last.text))


def seen(sight: Sight, found: Entry) -> tuple[Sight, Event | None]:
    """The next sight, and what is to be shown for it."""
    if found.fence < sight.fence:
        return sight, None
    if found.kind is Kind.BEGIN:
        return Sight(fence=found.fence), Reset() if sight.heard else None
    follows = (
        not sight.lost
        and found.offset == sight.heard
        and (found.fence == sight.fence or not sight.heard)
    )
    if found.kind is Kind.END:
        lost = not follows
        return replace(sight, fence=found.fence, lost=lost, ended=True), Ended()
    if follows:
        return Sight(fence=found.fence, heard=sight.heard + len(found.text)), Piece(found.text)
    return Sight(fence=found.fence, lost=True), Reset() if sight.heard else None
