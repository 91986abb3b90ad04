"""A backlog against a simulated provider that enforces its quota: how much of it is used, at what price.

    PYTHONPATH=tests python -m benchmarks.load [--short] [--database postgresql] [SCENARIO...]

`ramp s` is what was lost before the measured window, in seconds of the limit. Where quota is lost in it,
five columns tell who lost it. `asked %`: below 100, nobody asked for it (feeding, waiting, slots).
`blocked %`: a provider was out. `ratio`: the share of its limits that admission found to be taken. `truth`:
what it counts for each token that was estimated. `late`: how far calls are behind an even schedule, median
and 99th percentile in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from support.load import SCENARIOS, Result, Setup, measure

FULL_S, SHORT_S = 120.0, 20.0

HEAD = (
    "scenario   used %       ramp s  429 %  calls/job"
    " | asked %  blocked %  ratio      truth  late       peak s"
    " | scripts/job   us  commands/job | ms/job  others  queue  running  done       window"
)


def row(one: Result) -> str:
    """A line of the table."""
    used = "/".join(f"{100 * share:.1f}" for share in one.used)
    asked = "/".join(f"{100 * share:.0f}" for share in one.asked)
    ratio = "/".join(f"{share:.2f}" for share in one.ratio)
    late = f"{one.late[0]:.2f}/{one.late[1]:.2f}" if one.late else "-"
    return (
        f"{one.scenario:<10} {used:<12} {one.ramp_s:>6.2f}  {100 * one.refused:>5.2f}"
        f"  {one.calls_per_job:>9.3f}"
        f" | {asked:<8} {100 * one.blocked:>9.1f}  {ratio:<9}  {one.truth:.3f}  {late:<9}  {one.peak_s:>6.2f}"
        f" | {one.scripts_per_job:>11.2f} {one.script_us:>4.0f} {one.commands_per_job:>13.1f}"
        f" | {one.worker_ms_per_job:>6.1f} {one.others_cpu:>7.2f} {one.queue:>6}"
        f" {one.running:>4}/{one.slots:<3} {one.completed}/{one.jobs}  {one.window_s:.0f} s"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.load",
        description="Scenarios: " + "; ".join(f"{k}: {v.about}" for k, v in SCENARIOS.items()),
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO")
    parser.add_argument("--short", action="store_true", help="20 seconds of backlog, not 120")
    parser.add_argument("--seconds", type=float, help="of backlog")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=32, help="jobs of each worker")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    options = parser.parse_args(argv)
    if unknown := set(options.scenarios) - SCENARIOS.keys():
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    setup = Setup(
        seconds=options.seconds or (SHORT_S if options.short else FULL_S),
        workers=options.workers,
        concurrency=options.concurrency,
        database=options.database,
    )
    found = []
    print(HEAD, flush=True)
    for one in measure(options.scenarios or list(SCENARIOS), setup):
        print(row(one), flush=True)
        found.append(asdict(one))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
