"""The Lua scripts: composed from one file per concept, run by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

#: What each script is made of, in order: concepts (files with local functions only) and then itself.
#: Every call runs every line, so each has only what it needs, and what only a line needs comes last.
_PARTS = {
    "admit": "clock state pace gcra loss expected slots health choose wake flight grant provider"
    " admit line queue",
    "settle": "clock state pace gcra expected learned outcome wake flight grant settle"
    " slots provider line next",
    "look": "clock state pace gcra slots health provider line look",
    "renew": "clock state wake flight renew",
    "hold": "clock state slots hold",
    "leave": "clock state wake flight leave",
    "withdraw": "clock state pace gcra slots provider wake line withdraw",
    "seek": "clock state wake flight seek",
    "land": "clock state wake flight land",
}


@dataclass(frozen=True, slots=True)
class Script:
    """One script and its hash, as EVALSHA wants it."""

    text: str
    sha: str


@dataclass(frozen=True, slots=True)
class Scripts:
    """Everything the fleet's Redis runs for us."""

    admit: Script
    settle: Script
    look: Script
    renew: Script
    hold: Script
    leave: Script
    withdraw: Script
    seek: Script
    land: Script


@dataclass(frozen=True, slots=True)
class Call:
    """A script with its keys, all of one hash slot, and its arguments."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[bytes]

    @property
    def command(self) -> tuple[str | bytes | int, ...]:
        """As a server takes it that knows the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)


def compose(clock: str | None = None) -> Scripts:
    """The scripts; `clock`, if given, is Lua text in the place of `clock.lua`."""
    return Scripts(**{name: _script(parts.split(), clock) for name, parts in _PARTS.items()})


def _read(name: str) -> str:
    return (resources.files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _script(parts: list[str], clock: str | None) -> Script:
    texts = [clock if part == "clock" and clock else _read(part) for part in parts]
    text = "\n".join(texts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
