"""What one decision costs: claims a second, latency, commands and CPU; ours and three others', side by side.

    PYTHONPATH=tests python -m benchmarks.claims [--rounds 3] [--seconds 2] [--only llmtasks]
    PYTHONPATH=tests python -m benchmarks.claims --batching

The second shows what it saves to send concurrent claims together (`[batching]`): the default in relation to
`batch_size = 1`, in turns.

Each peer does the nearest thing it has (its module in `peers/` says what that is) on the same server, in
turns; a figure is the median of the rounds. `reads` are what the server reads from its sockets: round trips.
`commands` count those that scripts run, too. CPU of client and server in microseconds of each claim: unlike
times by the clock, those hold on a busy machine.

Peers live in environments of their own, made on demand outside of this repository.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.valkey import running_valkey

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmtasks-benchmarks"
#: Clients as tasks of a loop x processes.
SHAPES = ("1x1", "8x1", "32x1", "1x8", "1x32")
#: Seconds for the installer, and for one run of a peer beyond its measuring.
INSTALL_S, START_S = 600.0, 120.0


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who is measured; `requirements` of its own environment, none for ours."""

    name: str
    requirements: tuple[str, ...] = ()
    operations: tuple[str, ...] = ("admit",)


PEERS = (
    Peer(name="llmtasks", operations=("admit", "admit-3", "call", "call-3", "cached")),
    Peer(name="limits", requirements=("limits==5.8.0", "redis>=8,<9", "hiredis>=3,<4")),
    Peer(name="throttled", requirements=("throttled-py==3.5.0", "redis>=8,<9", "hiredis>=3,<4")),
    Peer(
        name="litellm",
        requirements=("litellm==1.106.2", "redis>=8,<9", "hiredis>=3,<4"),
        operations=("admit", "call", "call-unlimited"),
    ),
)

#: Of the comparison of batch sizes.
BATCHING = Peer(name="llmtasks", operations=("admit-unbatched", "admit"))
BATCHING_SHAPES = ("1x1", "8x1", "64x1", "500x1")

Figures = dict[str, float]


def python_of(peer: Peer, cache: Path) -> Path | None:
    """The interpreter of a peer's environment, which is made now if need be; None: it cannot be."""
    if not peer.requirements:
        return Path(sys.executable)
    home = cache / "-".join([peer.name, *peer.requirements]).translate(
        str.maketrans("<>=,", "____")
    )
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists():
        return python
    print(f"{peer.name}: making its environment in {home} ...", flush=True)
    try:
        venv.create(home, clear=True, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *peer.requirements],
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(f"{peer.name}: skipped, it cannot be installed: {said.strip().splitlines()[-1]}")
        return None
    ready.touch()
    return python


def run(
    python: Path, peer: Peer, operation: str, url: str, seconds: float, shapes: Sequence[str]
) -> dict[str, Figures]:
    """One run of one operation, in each shape."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *([] if peer.requirements else [str(ROOT)])]),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(
        [python, "-m", f"peers.of_{peer.name}", url, operation, str(seconds), *shapes],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=START_S + 10 * seconds * len(shapes),
    )
    if done.returncode:
        raise RuntimeError(f"{peer.name} {operation}: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(shapes, lines, strict=True))


def measure(
    peers: Sequence[Peer], *, cache: Path, rounds: int, seconds: float, shapes: Sequence[str]
) -> Iterator[tuple[str, str, str, Figures]]:
    """Peer, operation, shape, and the median of each figure over the rounds."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    pythons = {peer.name: python for peer in peers if (python := python_of(peer, cache))}
    with running_valkey() as server:
        for _ in range(rounds):
            for peer in peers:
                if peer.name not in pythons:
                    continue
                for operation in peer.operations:
                    ran = run(pythons[peer.name], peer, operation, server.url, seconds, shapes)
                    for shape, figures in ran.items():
                        found.setdefault((peer.name, operation, shape), []).append(figures)
    for (name, operation, shape), rows in found.items():
        medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        yield name, operation, shape, {**medians, "best_p50_us": min(r["p50_us"] for r in rows)}


HEAD = (
    "peer       operation       tasks x processes  claims/s    p50 us (best)      p99 us"
    " | commands  reads  server us  client us"
)


def row(name: str, operation: str, shape: str, one: Figures) -> str:
    """A line of the table."""
    return (
        f"{name:<10} {operation:<15} {shape:>17} {one['per_second']:>9,.0f}"
        f" {one['p50_us']:>9,.0f} ({one['best_p50_us']:,.0f})".ljust(75)
        + f"{one['p99_us']:>9,.0f} | {one['commands']:>8.1f} {one['reads']:>6.2f}"
        f" {one['server_us']:>10.0f} {one['client_us']:>10.0f}"
    )


#: What is compared.
COMPARED = ("reads", "client_us", "server_us", "p50_us", "p99_us", "per_second")


def saved(rows: Sequence[tuple[str, str, str, Figures]]) -> Iterator[str]:
    """By shape, what a claim costs together in relation to what it costs alone."""
    found = {(operation, shape): one for _, operation, shape, one in rows}
    for shape in BATCHING_SHAPES:
        alone, together = found["admit-unbatched", shape], found["admit", shape]
        ratios = (f"{name} {together[name] / alone[name]:.2f}" for name in COMPARED)
        yield f"{shape:>8}  together / alone: " + "  ".join(ratios)


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="benchmarks.claims", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--only", action="append", choices=[peer.name for peer in PEERS])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="TASKSxPROCESSES")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where environments are made")
    parser.add_argument("--batching", action="store_true", help="compare batch sizes instead")
    options = parser.parse_args(argv)
    peers = [peer for peer in PEERS if options.only is None or peer.name in options.only]
    if options.batching:
        peers, options.shapes = [BATCHING], BATCHING_SHAPES
    rows = measure(
        peers,
        cache=options.cache,
        rounds=options.rounds,
        seconds=options.seconds,
        shapes=options.shapes,
    )
    found = list(rows)
    print(HEAD)
    for one in found:
        print(row(*one))
    for line in saved(found) if options.batching else ():
        print(line)


if __name__ == "__main__":
    main()
