"""A simulated provider as a process of its own, on a free port.

with simulated(tokens_per_minute=60_000) as provider:
    client = openai.OpenAI(base_url=provider.openai_url, api_key="a", max_retries=0)
    ...
    assert provider.stats()["refused"] == 0
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_ANSWER_S = 30.0
_STOP_S = 10.0


class Simulated:
    """The control side of a running simulator."""

    def __init__(self, urls: dict[str, str], pid: int) -> None:
        self.url = urls["url"]
        self.openai_url = urls["openai_base_url"]
        self.anthropic_url = urls["anthropic_base_url"]
        self.pid = pid

    def stats(self) -> dict[str, Any]:
        return self._json("GET", "/_sim/stats")

    def log(self, last: int | None = None) -> list[dict[str, Any]]:
        """Every finished request, in the order of completion."""
        query = "" if last is None else f"?last={last}"
        return [json.loads(line) for line in self.send("GET", f"/_sim/log{query}").splitlines()]

    def faults(self, *faults: dict[str, Any], **fault: Any) -> list[dict[str, Any]]:
        """Sets faults: `faults(kind="500", next=3)`, or several as dicts. Answers them with ids."""
        wanted = [*faults, fault] if fault else [*faults]
        return self._json("POST", "/_sim/faults", wanted)["faults"]

    def active_faults(self) -> list[dict[str, Any]]:
        return self._json("GET", "/_sim/faults")["faults"]

    def no_faults(self) -> None:
        self._json("DELETE", "/_sim/faults")

    def quota(self, **quota: Any) -> None:
        """`quota(api="openai", account="key", tokens_per_minute=6000)`; omitted limits end."""
        self._json("POST", "/_sim/quota", quota)

    def latency(self, latency_s: float = 0.0, **latency: Any) -> None:
        self._json("POST", "/_sim/latency", {"latency_s": latency_s, **latency})

    def reset(self) -> None:
        self._json("POST", "/_sim/reset")

    def _json(self, method: str, path: str, data: Any = None) -> Any:
        return json.loads(self.send(method, path, data))

    def send(self, method: str, path: str, data: Any = None) -> bytes:
        """One control request; a refused one raises ValueError with the simulator's line."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.loads(error.read())["error"]) from None


@contextlib.contextmanager
def simulated(**options: Any) -> Iterator[Simulated]:
    """Runs `python -m llmtasks.simulator` with these options (`latency=0.1`, `seed=1`, ...)."""
    arguments = [
        part for name, value in options.items() for part in _argument(name.replace("_", "-"), value)
    ]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtasks.simulator", "--json", *arguments],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"the simulator did not start: exit {process.wait(_STOP_S)}")
        yield Simulated(json.loads(line), process.pid)
    finally:
        _end(process)


def _argument(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
