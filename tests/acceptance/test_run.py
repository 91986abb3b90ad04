"""`llmtasks run`: everything in one command, for a person who has documents and a key."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.processes import commands_in
from support.stack import Stack, eventually, provider

from llmtasks.store.tables import OPEN, jobs


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url, max_concurrency=8)], embedded=True)


@pytest.fixture
def folder(stack) -> Path:
    return written(stack, 5)


def written(stack: Stack, count: int) -> Path:
    folder = stack.home / "docs"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:02}.txt").write_text(f"Report {number} of the harbour. " * 10)
    return folder


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_in_one_command_and_again_for_nothing(stack, sim, folder):
    (folder / "empty.txt").write_text("")
    done = stack.cli("run", "summarize", "docs", code=1)
    rows = lines(done.stdout)
    assert [row["document_id"] for row in rows] == [f"{n:02}.txt" for n in range(5)]
    assert {row["state"] for row in rows} == {"completed"}
    assert all(row["output"] for row in rows)
    assert "empty.txt" in done.stderr
    assert sim.stats()["requests"] == 5
    assert commands_in(stack.home) == {}

    # Again: only what is new or changed is paid for.
    (folder / "empty.txt").write_text("Not empty any more: the harbour office wrote again.")
    (folder / "03.txt").write_text("Another text about the third ship of the harbour.")
    again = stack.cli("run", "summarize", "docs", "--out", "out.csv")
    assert again.stdout == ""
    assert sim.stats()["requests"] == 7
    with (stack.home / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["cached"] for row in table].count("True") == 4
    assert len(table) == 6


def test_what_is_wrong_is_said_before_anything_is_done(stack, sim, folder):
    for argv, said in (
        (["run", "summarise", "docs"], "did you mean summarize"),
        (["run", "translate", "docs"], "--to"),
        (["run", "summarize", "docs", "--to", "es"], "target_language"),
        (["run", "summarize", "docs", "-o", "max_words=many"], "max_words"),
        (["run", "summarize", "docs", "--out", "no/such/folder/x.jsonl"], "no/such/folder"),
        (["run", "summarize", "docs", "--out", "x.docx"], "x.docx"),
    ):
        done = stack.cli(*argv, code=2)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    assert stack.cli("run", "summarize", "missing", code=1).stderr.count("\n") == 2
    assert not (stack.home / "data" / "logs").exists()
    assert sim.stats()["requests"] == 0


def test_an_interrupted_run_goes_on_with_the_same_command(stack, sim):
    written(stack, 12)
    sim.latency(0.5)
    argv = ["run", "summarize", "docs", "--concurrency", "2", "--out", "out.jsonl"]
    first = stack.start([sys.executable, "-m", "llmtasks", *argv], "run")
    eventually(lambda: sim.stats()["requests"] >= 3, "some calls were made")
    first.signal(signal.SIGINT)
    assert first.wait() == 130
    assert "To go on run the same command again" in first.output()
    assert commands_in(stack.home) == {}
    asked = sim.stats()["requests"]
    assert asked < 12
    assert not (stack.home / "out.jsonl").exists()

    sim.latency(0.0)
    stack.cli(*argv)
    assert {row["state"] for row in lines((stack.home / "out.jsonl").read_text())} == {"completed"}
    # What was under way came to its end and was kept, so that no document is asked about twice.
    assert sim.stats()["requests"] == 12


def test_a_killed_run_leaves_no_process_behind(stack, sim):
    stack.configure(worker={"drain_s": 1})
    written(stack, 3)
    sim.latency(30.0)
    run = stack.start([sys.executable, "-m", "llmtasks", "run", "summarize", "docs"], "run")
    eventually(lambda: sim.stats()["in_flight"] > 0, "calls are under way")
    run.kill()
    eventually(lambda: commands_in(stack.home) == {}, "nothing is left")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGHUP])
def test_stopped_at_its_first_moment_it_leaves_nothing_to_pay_for(stack, sim, sig):
    written(stack, 40)
    run = stack.start([sys.executable, "-m", "llmtasks", "run", "summarize", "docs"], "run")
    eventually(lambda: "40 calls" in run.output(), "it is about to submit")
    run.signal(sig)
    assert run.wait() == 130
    assert open_jobs(stack) == 0
    assert commands_in(stack.home) == {}


def test_a_server_that_is_down_is_named_before_anything_is_done(stack, sim, folder):
    stack.configure(broker={"url": "redis://127.0.0.1:1/0"})
    done = stack.cli("run", "summarize", "docs", code=1)
    assert "broker.url: redis://127.0.0.1:1/0 does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_key_that_nobody_accepts_ends_the_run_with_that_reason(stack, sim, folder):
    sim.faults(kind="401")
    done = stack.cli("run", "summarize", "docs", code=1)
    assert "AuthenticationFailed" in done.stderr.splitlines()[-1]
    assert open_jobs(stack) == 0


def test_what_a_killed_run_left_is_cancelled_and_not_paid_by_the_next(stack, sim):
    stack.configure(worker={"drain_s": 0})
    written(stack, 20)
    sim.latency(2.0)
    argv = ["run", "summarize", "docs", "--concurrency", "2"]
    first = stack.start([sys.executable, "-m", "llmtasks", *argv], "run")
    eventually(lambda: sim.stats()["in_flight"] > 0, "calls are under way")
    first.kill()
    eventually(lambda: commands_in(stack.home) == {}, "its worker has ended")
    sim.latency(0.0)
    asked = sim.stats()["requests"]

    (stack.home / "other.txt").write_text("Another text, about something else.")
    done = stack.cli("run", "summarize", "other.txt")
    assert "a run that was killed left" in done.stderr
    assert sim.stats()["requests"] == asked + 1
    assert open_jobs(stack) == 0


def test_a_second_interrupt_gives_up_the_calls_and_their_places(stack, sim):
    written(stack, 3)
    sim.latency(60.0)
    run = stack.start([sys.executable, "-m", "llmtasks", "run", "summarize", "docs"], "run")
    eventually(lambda: sim.stats()["in_flight"] > 0, "calls are under way")
    run.signal(signal.SIGINT)
    eventually(lambda: "Ctrl-C again" in run.output(), "the first one was heard")
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert commands_in(stack.home) == {}
    assert open_jobs(stack) == 0
    worker = stack.worker()  # keeps the server, so that it can be asked
    (standing,) = stack.json("providers")
    assert standing["in_flight"] == 0
    worker.terminate()


def test_what_was_paid_for_a_failed_job_is_shown_with_it(stack, sim, folder):
    sim.faults(kind="refusal")
    done = stack.cli("run", "extract", "docs", "--out", "failed.jsonl", code=1)
    assert "5 failed: OutputRefused" in done.stderr
    rows = lines((stack.home / "failed.jsonl").read_text())
    assert all(row["usage"]["input_tokens"] > 0 for row in rows)
    assert {row["provider"] for row in rows} == {"sim"}


def test_results_that_find_no_place_are_said_to_be_stored(stack, sim, folder):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llmtasks", "run", "summarize", "docs"],
            env=stack.env,
            cwd=stack.home,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    *_, stored, reason = done.stderr.splitlines()
    assert stored.startswith("the results are stored: llmtasks results ")
    assert "No space left" in reason
    assert "Traceback" not in done.stderr


def open_jobs(stack: Stack) -> int:
    with stack.database.read() as connection:
        found: int = connection.execute(
            sa.select(sa.func.count()).select_from(jobs).where(OPEN)
        ).scalar_one()
    return found


@pytest.fixture
def only_a_key(make_stack, sim) -> Stack:
    """No toml; a key and an address in the environment."""
    stack = make_stack(providers=[], embedded=True)
    stack.config.unlink()
    del stack.env["LLMTASKS_CONFIG"]
    stack.env |= {
        "LLMTASKS_LOCAL__DATA_DIR": str(stack.home / "data"),
        "OPENAI_API_KEY": "sk-simulated-0123456789",
        "OPENAI_BASE_URL": sim.openai_url,
    }
    return stack


def test_a_key_nobody_configured_is_not_used_without_a_word(only_a_key, sim):
    written(only_a_key, 3)
    refused = only_a_key.cli("run", "summarize", "docs", code=2)
    assert "--yes" in refused.stderr
    assert sim.stats()["requests"] == 0

    done = only_a_key.cli("run", "summarize", "docs", "--yes")
    assert "3 calls" in done.stderr
    assert "OPENAI_API_KEY" in done.stderr
    assert "60 requests" in done.stderr
    assert "sk-simulated" not in done.stderr + done.stdout
    assert sim.stats()["requests"] == 3

    # Nothing to pay, nothing to ask.
    assert only_a_key.cli("run", "summarize", "docs").returncode == 0
    assert sim.stats()["requests"] == 3


@pytest.mark.parametrize(("answer", "code", "requests"), [("n", 1, 0), ("y", 0, 2)])
def test_the_user_is_asked_before_paying(only_a_key, sim, answer, code, requests):
    written(only_a_key, 2)
    with on_a_terminal(only_a_key, "run", "summarize", "docs") as (process, read, write):
        eventually(lambda: "Go on?" in read(), "the question is asked")
        assert sim.stats()["requests"] == 0
        write(f"{answer}\n")
        eventually(lambda: (read(), process.poll() is not None)[1], "it ended")
    assert process.returncode == code
    assert sim.stats()["requests"] == requests


@contextlib.contextmanager
def on_a_terminal(stack: Stack, *argv: str):
    """A command on a terminal; how to read its screen so far, and how to type."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtasks", *argv],
        env={**stack.env, "TERM": "xterm"},
        cwd=stack.home,
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    os.set_blocking(ours, False)
    seen = bytearray()

    def read() -> str:
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 65_536):
                seen.extend(chunk)
        return seen.decode(errors="replace")

    def write(text: str) -> None:
        os.write(ours, text.encode())

    try:
        yield process, read, write
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


def test_the_estimate_calls_nobody_and_says_what_run_will_ask(stack, sim, folder):
    estimated = stack.json("estimate", "summarize", "docs")
    assert (estimated["documents"], estimated["calls"], estimated["answered"]) == (5, 5, 0)
    assert estimated["cost_usd"] is None  # nobody knows the price of a self-hosted model
    assert sim.stats()["requests"] == 0
    assert stack.cli("submit", "summarize", "--all", code=2).stdout == ""  # and nothing is stored

    rows = lines(stack.cli("run", "summarize", "docs").stdout)
    assert sim.stats()["requests"] == estimated["calls"]
    paid = sum(row["usage"]["input_tokens"] for row in rows)
    assert 0.85 * paid <= estimated["usage"]["input_tokens"] <= 1.15 * paid
    assert stack.json("estimate", "summarize", "docs")["calls"] == 0
