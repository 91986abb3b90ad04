"""Which processes an installation has started, whoever started them."""

from __future__ import annotations

import contextlib
from pathlib import Path


def commands_in(home: Path) -> dict[int, str]:
    """The running processes of an installation, by pid: those that have it as their HOME, or work inside it.

    Either may be missing: converters are given no HOME, and a server may have gone elsewhere.
    """
    found = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if process.name.isdigit() and _belongs(process, home):
                words = (process / "cmdline").read_bytes().split(b"\0")
                found[int(process.name)] = b" ".join(words).decode(errors="replace").strip()
    return found


def converters_in(home: Path) -> set[int]:
    """Those that convert documents, by pid."""
    return {pid for pid, command in commands_in(home).items() if "llmtasks.documents" in command}


def _belongs(process: Path, home: Path) -> bool:
    if (process / "cwd").readlink().is_relative_to(home):
        return True
    return f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
