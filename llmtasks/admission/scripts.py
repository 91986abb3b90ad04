"""The Lua scripts: composed from one file per concept, run by their hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

#: Files with local functions only, in the order in which they use each other.
_CONCEPTS = ("clock", "state", "gcra", "slots", "health", "choose")


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


def compose(clock: str | None = None) -> Scripts:
    """The scripts; `clock`, if given, is Lua text in the place of `clock.lua`."""
    concepts = [clock if name == "clock" and clock else _read(name) for name in _CONCEPTS]
    return Scripts(*(_script([*concepts, _read(name)]) for name in ("admit", "settle", "look")))


def _read(name: str) -> str:
    return (resources.files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _script(parts: list[str]) -> Script:
    text = "\n".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
