"""`watch`, `providers` and exported files, as people and scripts meet them."""

from __future__ import annotations

import codecs
import csv
import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from pyarrow import parquet
from support.stack import PATIENCE_S, eventually, provider

#: Sequences of a terminal that a live screen is made of: move, erase, colour, cursor on and off.
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)])


#: The command, told to say after half a second what it says after five.
SOON = [
    sys.executable,
    "-c",
    """if True:
    from llmtasks.cli import main, progress
    progress.GRACE_S = progress.LINE_S = 0.5
    main()
    """,
]


class Terminal:
    """A command on a terminal of its own; it ends with the test's installation."""

    def __init__(self, stack, columns, *argv, python=(sys.executable, "-m", "llmtasks")):
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [*python, *argv],
            env={**stack.env, "TERM": "xterm-256color"},
            cwd=stack.home,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self.text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        stack.ending.callback(os.close, self._fd)
        stack.ending.callback(self.process.wait)
        stack.ending.callback(self.process.kill)

    def read(self, seconds=0.1):
        """What has been written until now; True while there may be more."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            self.text += self._decode(os.read(self._fd, 65536))
        except OSError:  # its last user has closed it
            return False
        return True

    def until(self, wanted):
        deadline = time.monotonic() + PATIENCE_S
        while wanted not in SEQUENCE.sub("", self.text):
            assert self.read(), self.text
            assert time.monotonic() < deadline, self.text

    def end(self):
        """Its exit code, with all that it wrote read."""
        deadline = time.monotonic() + PATIENCE_S
        while self.read() and time.monotonic() < deadline:
            pass
        return self.process.wait(PATIENCE_S)


def test_a_watched_batch_shows_why_it_stands_still_and_ends_with_the_truth(stack, sim):
    stack.documents(12)
    batch = stack.submit("summarize", "--all")
    plain = stack.start([*SOON, "watch", batch], "watch")

    # Nobody works yet: the screen says so, and Ctrl-C ends the watching alone.
    idle = Terminal(stack, 40, "watch", python=SOON)
    idle.until("no worker serves llm.summarize")
    os.kill(idle.process.pid, signal.SIGINT)
    assert idle.end() == 130
    assert f"llmtasks watch {batch}" in "".join(idle.text.split("\r\n")[-3:])
    assert idle.text.endswith("\n")
    assert idle.text.rindex("\x1b[?25h") > idle.text.rindex("\x1b[?25l")  # the cursor is back
    assert stack.status(batch)["queued"] == 12

    sim.latency(0.3)
    sim.faults(kind="429", next=1, retry_after=6)
    screen = Terminal(stack, 80, "watch", batch)
    screen.until("12 queued")
    eventually(lambda: "12 queued" in plain.output(), "both watch")
    stack.worker(concurrency=2)
    screen.until("sim asked for a pause (429), next try in")
    lines = [json.loads(text) for text in stack.cli("watch", batch, "--json").stdout.splitlines()]
    assert screen.end() == 0
    assert plain.wait() == 0

    assert lines[-1] == stack.status(batch)
    assert lines[-1]["completed"] == 12
    assert all(before != after for before, after in itertools.pairwise(lines))
    left = SEQUENCE.sub("", screen.text)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", left)  # nothing but lines and sequences
    assert "12 completed (0 answered from the store)" in left
    assert "took " in left
    assert "\x1b" not in plain.output()
    assert "12 of 12 (100 %)" in plain.output()
    assert "sim asked for a pause (429)" in plain.output()


def test_watching_outlives_an_outage_of_the_database(make_stack, postgres):
    stack = make_stack(providers=[provider("http://127.0.0.1:9/v1")], database="postgresql")
    batch = stack.submit("summarize", "any")
    name = stack.database.url.database
    watch = stack.start([sys.executable, "-m", "llmtasks", "watch", batch], "watch")
    eventually(lambda: "1 queued" in watch.output(), "it is watched")
    stack.database.close()

    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    eventually(lambda: "the database does not answer" in watch.output(), "the outage is told")
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    stack.inside("cancel", batch)
    assert watch.wait() == 1
    assert "1 cancelled" in watch.output()


def test_watch_tells_scripts_how_it_ended(stack, sim):
    missing = stack.inside("watch", code=2)
    assert missing.stderr == "llmtasks: there is no batch yet; submit one with: llmtasks submit\n"
    unknown = stack.inside("watch", "unknown", code=2).stderr
    assert unknown == "llmtasks: no batch and no job has the id 'unknown'\n"
    stack.worker(concurrency=2)
    failed = stack.submit("summarize", "no such document")
    done = stack.cli("watch", code=1)
    assert failed in done.stderr
    assert "1 failed" in done.stdout
    stack.inside("status", failed, code=1)


def test_exports_agree_with_each_other_and_with_the_jobs(stack, sim):
    stack.documents(5)
    sim.faults(kind="400", match="Item 3 ")
    stack.worker(concurrency=4)
    batch = stack.submit("summarize", "--all")
    stack.finished(batch)

    lines = stack.results(batch)
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        stack.inside("results", batch, "--out", name, code=1)
    piped = stack.home / "piped.parquet"
    with piped.open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "llmtasks", "results", batch, "--format", "parquet"],
            env=stack.env,
            stdout=file,
            check=False,
        )

    text = (stack.home / "rows.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == lines
    with (stack.home / "rows.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    table = parquet.read_table(stack.home / "rows.parquet").to_pylist()
    assert parquet.read_table(piped).to_pylist() == table
    for line, cell, row in zip(lines, cells, table, strict=True):
        job = stack.job(line["job_id"])
        assert line["state"] == cell["state"] == row["state"] == job.state
        assert (line["output"] or "") == cell["output"] == (row["output"] or "")
        assert (cell["error_type"] or None) == row["error_type"] == job.error_type
        assert line["usage"]["input_tokens"] == row["input_tokens"] == int(cell["input_tokens"])
    assert sum(row["state"] == "failed" for row in table) == 1


def test_parquet_is_not_poured_over_a_terminal(stack):
    screen = Terminal(stack, 80, "results", "any", "--format", "parquet")
    assert screen.end() == 2
    assert "parquet is no text for a terminal" in screen.text


def test_providers_tells_how_they_stand(make_stack, sim, own_valkey):
    entries = [
        provider(sim.openai_url, "main", requests_per_minute=600, max_concurrency=4),
        provider(sim.openai_url, "spare", weight=0),
        provider("https://api.openai.com/v1", "listed", model="gpt-4o-mini", weight=0),
    ]
    tasks = {"tasks.summarize": {"providers": ["main"]}}
    stack = make_stack(providers=entries, broker=own_valkey, settings=tasks)
    stack.documents(4)
    stack.worker(concurrency=4)
    stack.finished(stack.submit("summarize", "--all"))

    main, spare, listed = stack.json("providers")
    assert main["state"] == "ok"
    assert main["limits"] == [{"name": "requests", "per_minute": 600.0, "last_minute": 4}]
    assert (main["share"], main["expected_share"], main["answers"]) == (1.0, 1.0, 4)
    assert (main["in_flight"], main["max_concurrency"]) == (0, 4)
    assert (main["waiting"], main["effective_ratio"]) == (0, 1.0)
    assert main["price"] is None  # served from an address nobody lists
    assert spare["standby"]
    assert spare["answers"] == 0
    assert listed["price"]["input_usd_per_mtok"] < listed["price"]["output_usd_per_mtok"]
    text = stack.inside("providers").stdout
    assert "main  ok\n" in text
    assert "spare (standby)  ok\n" in text
    assert "4 of 600 requests" in text

    sim.faults(kind="429", next=1, retry_after=50)
    refused = stack.submit("summarize", "--all", "--fresh")
    eventually(lambda: stack.status(refused)["waiting"], "a job was parked for the pause")
    assert stack.json("providers", inside=True)[0]["state"] == "blocked"
    blocked = stack.inside("providers").stdout
    assert re.search(r"main  blocked \d+ s: main asked for a pause \(429\)\n", blocked), blocked
    assert re.search(r"limits +at 8\d %: it refused more", blocked), blocked

    own_valkey.stop()
    away = stack.inside("providers", code=1).stdout
    assert "main  unknown: Redis does not answer\n" in away
    assert "of 600 requests" in away  # the database still tells what was answered


def test_providers_starts_nothing(make_stack):
    stack = make_stack(providers=[provider("http://127.0.0.1:9/v1")], embedded=True)
    (line,) = stack.json("providers", code=1)
    assert (line["state"], line["reason"]) == ("unknown", "the embedded server is not running")
    assert not list((stack.home / "data").glob("valkey*"))
    stack = make_stack(providers=[], embedded=True)
    stack.env.pop("OPENAI_API_KEY", None)
    stack.env.pop("ANTHROPIC_API_KEY", None)
    assert "providers: none is configured" in stack.cli("providers", code=2).stderr
