"""A real Redis Cluster for tests: primaries alone, each with its own directory, ended by their own pids."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import redis
from redis.crc import key_slot
from support.valkey import Valkey, free_port, serving

_SLOTS = 16384
_START_S = 30.0


class Cluster:
    """So many nodes that share the slots. Each serves its part also while another one is away."""

    def __init__(self, nodes: int = 1) -> None:
        self._ending = ExitStack()
        directory = Path(self._ending.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
        # The bus's port would be 10,000 above: no port at all for most of the free ones.
        self._ports = [(free_port(), free_port()) for _ in range(nodes)]
        self._directories = [directory / str(port) for port, _ in self._ports]
        self._running: dict[int, tuple[ExitStack, Valkey]] = {}
        for number, path in enumerate(self._directories):
            path.mkdir()
            self.start(number)
        self._join()

    @property
    def url(self) -> str:
        """Any node's."""
        return self.url_of(0)

    def url_of(self, node: int) -> str:
        return f"redis://127.0.0.1:{self._ports[node][0]}/0"

    def holder(self, key: str) -> int:
        """The number of the node that has a key's slot."""
        return key_slot(key.encode()) * len(self._ports) // _SLOTS

    def start(self, node: int) -> None:
        """Start one (again), empty but for what it knows of the others."""
        running = ExitStack()
        port, bus = self._ports[node]
        server = running.enter_context(
            serving(
                port,
                self._directories[node],
                cluster_enabled="yes",
                cluster_port=str(bus),
                cluster_node_timeout="1000",
                cluster_require_full_coverage="no",
            )
        )
        self._running[node] = (running, server)

    def kill(self, node: int) -> None:
        """End one with SIGKILL."""
        running, _ = self._running.pop(node)
        running.close()

    def client(self, node: int = 0) -> redis.Redis:
        return redis.Redis.from_url(self.url_of(node))

    def await_whole(self) -> None:
        """Wait until every node says that all slots are served."""
        deadline = time.monotonic() + _START_S
        while not all(self._is_whole(node) for node in range(len(self._ports))):
            assert time.monotonic() < deadline, "the cluster is not whole"
            time.sleep(0.02)

    def close(self) -> None:
        for running, _ in self._running.values():
            running.close()
        self._ending.close()

    def _join(self) -> None:
        count = len(self._ports)
        for node in range(count):
            bounds = [-(-_SLOTS * edge // count) for edge in (node, node + 1)]
            with self.client(node) as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[0], bounds[1] - 1)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", node + 1)
                if node:
                    first, bus = self._ports[0]
                    client.execute_command("CLUSTER MEET", "127.0.0.1", first, bus)
        self.await_whole()

    def _is_whole(self, node: int) -> bool:
        with self.client(node) as client:
            told = client.execute_command("CLUSTER INFO")
        return (
            told["cluster_state"] == "ok"
            and int(told["cluster_slots_ok"]) == _SLOTS
            and int(told["cluster_known_nodes"]) == len(self._ports)
        )
