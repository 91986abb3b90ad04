"""What one job costs: CPU of its worker, Redis commands, memory. Prints figures, asserts no time.

make bench
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import redis
from support.stack import eventually, provider

pytestmark = pytest.mark.bench

JOBS = 1_000


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024


def commands(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("stats")["total_commands_processed"])


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_cost_of_a_job(make_stack, sim, database, capsys):
    stack = make_stack(database=database, providers=[provider(sim.openai_url)])
    sim.latency(0.1)
    stack.documents(JOBS)
    worker = stack.worker(concurrency=64)
    before = cpu_seconds(worker.pid), commands(stack.broker_url), time.monotonic()
    batch = stack.submit("summarize", "--all")
    eventually(lambda: stack.status(batch)["state"] != "running", "done", timeout=300.0)
    cpu = cpu_seconds(worker.pid) - before[0]
    asked = commands(stack.broker_url) - before[1]
    seconds = time.monotonic() - before[2]
    with capsys.disabled():
        print(
            f"\n{database}: {JOBS} jobs in {seconds:.1f} s, {1000 * cpu / JOBS:.1f} ms CPU a job,"
            f" {asked / JOBS:.1f} Redis commands a job, {resident_mb(worker.pid):.0f} MB"
        )
    assert stack.status(batch)["completed"] == JOBS
