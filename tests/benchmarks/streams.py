"""What streams cost: the time to the first token against the provider's own, and many streams at once.

    PYTHONPATH=tests python -m benchmarks.streams --streams 500

A real server and a real simulator, each a process, on this machine; the client shares it too. The time to the
first token is taken by turns from the simulator itself and through the server, and their medians compared.
Then so many chats run at once, each of some seconds; the server's CPU and memory are read from the system.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from support.machine import cpu_seconds
from support.served import Served, serve
from support.simulated import Simulated, simulated
from support.stack import Stack, provider
from support.valkey import RestartableValkey

MESSAGES = [
    {"role": "user", "content": "Tell of the sun, the hills of the north and the sea. " * 8}
]


@dataclass(frozen=True)
class Measured:
    """Seconds are medians; `cpu_ms` is the server's for one stream, `mb` what it grew by at the most."""

    direct_s: float
    served_s: float
    streams: int
    whole: int
    wall_s: float
    cpu_ms: float
    before_mb: float
    most_mb: float

    def __str__(self) -> str:
        added = 1000 * (self.served_s - self.direct_s)
        return (
            f"first token: provider {1000 * self.direct_s:.1f} ms, served {1000 * self.served_s:.1f} ms"
            f" (+{added:.1f} ms)\n"
            f"{self.streams} streams at once: {self.whole} whole in {self.wall_s:.1f} s,"
            f" {self.cpu_ms:.1f} ms of CPU each; {self.before_mb:.0f} -> {self.most_mb:.0f} MB"
        )


def measure(streams: int, seconds: float, rounds: int) -> Measured:
    """Run it in an installation of its own."""
    with contextlib.ExitStack() as ending:
        sim = ending.enter_context(simulated())
        broker = RestartableValkey()
        ending.callback(broker.stop)
        home = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        stack = Stack(
            home,
            broker_url=broker.url,
            database_url=None,
            providers=[provider(sim.openai_url)],
            settings={"api": {"max_streams": 2 * streams}},
        )
        ending.callback(stack.close)
        return asyncio.run(_measure(sim, serve(stack), streams, seconds, rounds))


async def _measure(
    sim: Simulated, server: Served, streams: int, seconds: float, rounds: int
) -> Measured:
    direct, served = await _first_tokens(sim, server, rounds)
    sim.latency(seconds, first_token_s=0.2)
    pid = server.process.pid
    before, cpu = _rss_mb(pid), cpu_seconds(pid)
    memory = [before]
    watching = asyncio.create_task(_watch_memory(pid, memory))
    began = time.monotonic()
    async with _session(streams) as session:
        ends = await asyncio.gather(
            *(_chat(session, f"{server.url}/chat/stream") for _ in range(streams))
        )
    wall = time.monotonic() - began
    watching.cancel()
    spent = cpu_seconds(pid) - cpu
    return Measured(
        direct_s=statistics.median(direct),
        served_s=statistics.median(served),
        streams=streams,
        whole=sum(end == b"data: [DONE]" for _, end in ends),
        wall_s=wall,
        cpu_ms=1000 * spent / streams,
        before_mb=before,
        most_mb=max(memory),
    )


async def _first_tokens(
    sim: Simulated, server: Served, rounds: int
) -> tuple[list[float], list[float]]:
    """By turns from the provider itself and through the server."""
    sim.latency(0.2, first_token_s=0.05)
    direct, served = [], []
    asked = {"model": "model-sim", "messages": MESSAGES, "stream": True, "max_tokens": 500}
    key = {"authorization": "Bearer sk-simulated-0123456789"}
    async with _session(4) as session:
        for _ in range(rounds + 1):
            first, _ = await _chat(
                session, f"{sim.openai_url}/chat/completions", asked, key, b'"content":"T'
            )
            direct.append(first)
            first, _ = await _chat(session, f"{server.url}/chat/stream")
            served.append(first)
    return direct[1:], served[1:]


@contextlib.asynccontextmanager
async def _session(most: int) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=most)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def _chat(
    session: aiohttp.ClientSession,
    url: str,
    body: object = None,
    headers: dict[str, str] | None = None,
    sign: bytes = b'"token"',
) -> tuple[float, bytes]:
    """Seconds until the first text, and the last line."""
    began, first, last = time.perf_counter(), 0.0, b""
    asked = {"messages": MESSAGES, "max_output_tokens": 500} if body is None else body
    async with session.post(url, json=asked, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not first and sign in line:
                first = time.perf_counter() - began
            last = line.strip() or last
    return first, last


async def _watch_memory(pid: int, found: list[float]) -> None:
    while True:
        await asyncio.sleep(0.1)
        found.append(_rss_mb(pid))


def _rss_mb(pid: int) -> float:
    (pages,) = Path(f"/proc/{pid}/statm").read_text().split()[1:2]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each chat")
    parser.add_argument("--rounds", type=int, default=30, help="of first tokens")
    given = parser.parse_args(argv)
    print(measure(given.streams, given.seconds, given.rounds))


if __name__ == "__main__":
    sys.exit(main())
