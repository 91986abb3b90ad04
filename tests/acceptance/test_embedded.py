"""Nothing configured but a provider: the machine's workers keep a server and a database themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.stack import ROOT, Process, eventually, provider

from llmtasks.settings import load


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)], embedded=True)


def servers_of(stack) -> list[str]:
    """Servers of an installation; Valkey shows its socket where its arguments were."""
    socket = str(load(stack.env, stack.home).socket_path)
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.splitlines() if socket in line and "valkey" in line]


def test_a_plain_script_and_two_workers_find_each_other(stack):
    first = stack.worker(concurrency=2)
    stack.worker(concurrency=2)
    got = stack.script(
        """
        import json
        from llmtasks import add_document, process_document
        add_document("A text for the embedded server.", "d")
        print(json.dumps(process_document.delay("d", "summarize").get(timeout=60)["status"]))
        """
    )
    assert got == "completed"
    assert len(servers_of(stack)) == 1

    # Whoever keeps the server is killed: the other one starts it again, with its messages.
    first.kill()
    stack.documents(5)
    assert stack.finished(stack.submit("summarize", "--all"))["failed"] == 0
    assert len(servers_of(stack)) == 1


def test_jobs_wait_for_the_first_worker(stack):
    stack.documents(2)
    batch = stack.submit("summarize", "--all")
    assert stack.status(batch)["queued"] == 2
    worker = stack.worker()
    assert stack.finished(batch)["completed"] == 2
    assert worker.terminate() == 0
    assert servers_of(stack) == []


def test_a_killed_worker_leaves_no_server_behind(stack):
    worker = stack.worker()
    assert len(servers_of(stack)) == 1
    worker.kill()
    eventually(lambda: servers_of(stack) == [], "the server ended with its keeper")


def test_the_data_directory_and_all_in_it_are_private(stack):
    before = os.umask(0o022)
    try:
        stack.worker()
    finally:
        os.umask(before)
    settings = load(stack.env, stack.home)
    made = [settings.data_dir, settings.socket_path.parent, *settings.data_dir.rglob("*")]
    assert any(path.suffix == ".aof" for path in made), made
    assert [path for path in made if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize(
    ("sig", "moment"),
    [(signal.SIGTERM, "starting a small local model"), (signal.SIGKILL, "sample texts")],
)
def test_the_demo_leaves_nothing_behind(tmp_path, sig, moment):
    pytest.importorskip("xllamacpp")
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMTASKS_")}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    env["PYTHONUNBUFFERED"] = "1"
    demo = Process(
        [sys.executable, "-m", "llmtasks.cli.demo"], env, tmp_path / "demo.log", tmp_path
    )
    try:
        eventually(lambda: moment in demo.output() or not demo.running, moment)
        assert demo.running, demo.output()
        demo.signal(sig)
        demo.wait(30.0)
    finally:
        demo.end()

    def left() -> list[str]:
        mark = f"TMPDIR={tmp_path}".encode()
        found = []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and mark in (process / "environ").read_bytes():
                    found.append(process.name)
        return found

    eventually(lambda: left() == [], "nothing is left")
