"""Clients that do one thing as often as they can; the same harness in everybody's own environment.

A module beside this one defines `OPERATIONS`: by name, what opens a client of a server, which gives one
coroutine function that does the thing once. It is run as a program: `python -m peers.of_X URL NAME SECONDS
TASKSxPROCESSES...` prints a JSON line for each shape. Nothing but the standard library and redis-py here.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import redis

#: One doing.
Once = Callable[[], Awaitable[object]]
#: From the server's URL to it.
Open = Callable[[str], Awaitable[Once]]

#: Before measuring, each client does so many: connections, scripts, caches.
WARM_UP = 20


def main(operations: Mapping[str, Open]) -> None:
    """The program."""
    url, name, seconds, *shapes = sys.argv[1:]
    for shape in shapes:
        tasks, processes = map(int, shape.split("x"))
        print(json.dumps(_measured(operations[name], url, float(seconds), tasks, processes)))
        sys.stdout.flush()


def _measured(opened: Open, url: str, seconds: float, tasks: int, processes: int) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes + 1)
    pipes = []
    children = []
    with redis.Redis.from_url(url) as server:
        server.flushall()
    for _ in range(processes):
        ours, theirs = context.Pipe()
        arguments = (opened, url, seconds, tasks, barrier, theirs)
        children.append(context.Process(target=_child, args=arguments))
        children[-1].start()
        pipes.append(ours)
    barrier.wait()  # all are warm
    with redis.Redis.from_url(url) as server:
        before = _server(server)
        barrier.wait()
        ended = [pipe.recv() for pipe in pipes]
        after = _server(server)
    for child in children:
        child.join()
    latencies = sorted(one for child, _ in ended for one in child)
    done = len(latencies)
    return {
        "tasks": tasks,
        "processes": processes,
        "per_second": done / seconds,
        "p50_us": 1e6 * latencies[done // 2],
        "p99_us": 1e6 * latencies[int(0.99 * done)],
        "client_us": 1e6 * sum(cpu for _, cpu in ended) / done,
        **{key: (after[key] - before[key]) / done for key in after},
    }


def _server(server: redis.Redis) -> dict[str, float]:
    """What the server counts: commands (those of scripts too), reads of sockets, its CPU."""
    told: dict[str, Any] = server.info("everything")
    return {
        "commands": told["total_commands_processed"],
        "reads": told["total_reads_processed"],
        "server_us": 1e6 * (told["used_cpu_user"] + told["used_cpu_sys"]),
    }


def _child(
    opened: Open, url: str, seconds: float, tasks: int, barrier: Barrier, pipe: Connection
) -> None:
    pipe.send(asyncio.run(_clients(opened, url, seconds, tasks, barrier)))


async def _clients(
    opened: Open, url: str, seconds: float, tasks: int, barrier: Barrier
) -> tuple[list[float], float]:
    """The latencies of one process' clients, and its CPU seconds."""
    once = await opened(url)
    await asyncio.gather(*(_repeat(once, WARM_UP) for _ in range(tasks)))
    gc.collect()
    gc.freeze()
    barrier.wait()
    barrier.wait()
    cpu = time.process_time()
    ends = time.perf_counter() + seconds
    found = await asyncio.gather(*(_timed(once, ends) for _ in range(tasks)))
    return [one for of_task in found for one in of_task], time.process_time() - cpu


async def _repeat(once: Once, times: int) -> None:
    for _ in range(times):
        await once()


async def _timed(once: Once, ends: float) -> list[float]:
    found = []
    while (began := time.perf_counter()) < ends:
        await once()
        found.append(time.perf_counter() - began)
    return found
