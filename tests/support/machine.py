"""What processes and servers have used: CPU seconds from /proc, commands from INFO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import redis

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of one process and its threads; 0.0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def busy_seconds() -> float:
    """CPU time of everybody on this machine."""
    user, nice, system, _idle, _wait, *rest = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + sum(rest[:2])) * _TICK_S


def commands(client: redis.Redis) -> dict[str, tuple[int, int]]:
    """Calls and microseconds of each command that the server has run; those of scripts among them."""
    told = client.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): (int(row["calls"]), int(row["usec"]))
        for name, row in told.items()
    }


def spent(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, float]]:
    """Calls between two readings, and microseconds of each call."""
    found: dict[str, tuple[int, float]] = {}
    for name, (calls, usec) in after.items():
        earlier = before.get(name, (0, 0))
        more = calls - earlier[0]
        if more:
            found[name] = (more, (usec - earlier[1]) / more)
    return found
