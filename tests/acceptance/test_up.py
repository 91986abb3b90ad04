"""`llmtasks up`: everything on one machine, found by whoever looks, and gone when it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from support.stack import PATIENCE_S, eventually, provider
from support.valkey import free_port


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(
        providers=[provider(sim.openai_url)],
        embedded=True,
        settings={"flower": {"port": free_port()}},
    )


def start(stack, *argv):
    up = stack.start([sys.executable, "-m", "llmtasks", "up", *argv], "up")
    eventually(lambda: "ready;" in up.output() or not up.running, "up is ready")
    assert up.running, up.output()
    return up


def left(stack) -> list[str]:
    """Processes that were started with this installation's environment."""
    mark = f"HOME={stack.home}\0".encode()
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def elsewhere(stack, monkeypatch) -> None:
    """From now on, commands and scripts have no configuration, and another working directory."""
    env = {name: value for name, value in stack.env.items() if name != "LLMTASKS_CONFIG"}
    monkeypatch.setattr(stack, "env", {**env, "LLMTASKS_LOCAL__DATA_DIR": str(stack.home / "data")})
    other = stack.home / "elsewhere"
    other.mkdir()
    monkeypatch.setattr(stack, "home", other)


def flower(stack, path: str):
    port = stack._settings["flower"]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return json.load(answer)


def test_scripts_and_commands_elsewhere_find_it_and_sigterm_ends_all_of_it(stack, monkeypatch):
    up = start(stack)
    eventually(lambda: flower(stack, "/workers?json=1")["data"], "Flower sees the worker")
    second = stack.cli("up", code=2)
    assert f"(process {up.pid})" in second.stderr
    data = stack.home / "data"
    logs = [data / "logs" / name for name in ("worker-1.log", "flower.log")]
    for path in (data, data / "logs", *logs):
        assert path.stat().st_mode & 0o077 == 0
    with monkeypatch.context() as patch:
        elsewhere(stack, patch)
        assert stack.script(
            """
            import json
            from llmtasks import add_document, process_document
            add_document("A text for all of it.", "d")
            print(json.dumps(process_document.delay("d", "summarize").get(timeout=60)["status"]))
            """
        ) == "completed"  # fmt: skip
        batch = stack.json("submit", "translate", "d", "--to", "es")["batch_id"]
        assert "1 completed" in stack.cli("watch", batch).stdout
        (line,) = stack.cli("results", batch).stdout.splitlines()
        assert json.loads(line)["state"] == "completed"
    up.signal(signal.SIGTERM)
    assert up.wait() == 0
    assert left(stack) == []


def test_a_killed_worker_is_started_again_and_a_killed_up_leaves_nothing_behind(stack):
    up = start(stack, "--no-flower", "--concurrency", "2")
    worker = int(up.output().split("worker-1  process ")[1].split(",")[0])
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: "worker-1 is back" in up.output(), "the worker is started again")
    stack.documents(2)
    assert stack.finished(stack.submit("summarize", "--all"))["completed"] == 2
    up.kill()
    eventually(lambda: left(stack) == [], lambda: f"nothing is left: {left(stack)}")


def test_asked_twice_it_does_not_wait_for_calls_in_flight(stack, sim):
    sim.latency(PATIENCE_S)
    up = start(stack, "--no-flower")
    stack.documents(1)
    stack.submit("summarize", "--all")
    eventually(lambda: sim.stats()["in_flight"] == 1, "a call is in flight")
    up.signal(signal.SIGINT)
    eventually(lambda: "stopping" in up.output(), "it stops in order")
    up.signal(signal.SIGINT)
    assert up.wait(20) == 0
    assert left(stack) == []


def test_a_broker_that_does_not_answer_is_said_at_once(stack):
    stack.configure(broker={"url": f"redis://:sekret@127.0.0.1:{free_port()}/0"})
    refused = stack.cli("up", code=1)
    assert "does not answer: connection refused" in refused.stderr
    assert "sekret" not in refused.stderr
