"""The user's own functions in real workers: texts from their store, results into their table."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal

import pytest
import sqlalchemy as sa
from support import nasty
from support.processes import converters_in
from support.stack import Stack, eventually, provider
from support.valkey import RestartableValkey

from llmtasks.store import outbox, tables

#: A user's module: a folder as the store, a file of lines as the table. Faults are files, too: what each of
#: the two functions does with a document.
MINE = """
import asyncio, json, os, pathlib, sys, threading, time
from llmtasks.errors import NotNow
HERE = pathlib.Path(__file__).parent
LOCK = threading.Lock()
LONG = "x" * 200_000  # no process can be started with it in its environment

def note(file, line):
    with LOCK, (HERE / file).open("a") as out:
        out.write(line + "\\n")

def fault(of, document_id):
    path = HERE / "faults" / of / document_id
    return path.read_text() if path.exists() else None

def asked(document_id):
    return (HERE / "asked").read_text().splitlines().count(document_id)

def fail(kind):
    if kind == "down":
        raise ConnectionError("a secret")
    if kind == "cancelled":
        raise asyncio.CancelledError("a secret")

def fetch(document_id, *, tenant):
    note("asked", document_id)
    kind = fault("source", document_id)
    fail(kind)
    if kind == "slow disk" and asked(document_id) < 3:
        raise ConnectionError("a secret")
    if kind == "later":
        raise NotNow("later", delay=60.0)
    sys.path[:] = [*filter(LONG.__ne__, sys.path), *([LONG] if kind == "no process" else [])]
    path = HERE / "store" / tenant / document_id
    return path.read_bytes() if path.exists() else None

def save(row):
    if fault("sink", row["document_id"]) == "hangs":
        note("hanging", row["document_id"])
    while fault("sink", row["document_id"]) == "hangs":
        time.sleep(0.05)
    fail(fault("sink", row["document_id"]))
    note("table", json.dumps(row))
"""
SOURCE = {"documents": {"source": "mine:fetch"}}
SINK = {"results": {"sink": "mine:save"}}


@pytest.fixture(scope="module")
def installation(request, tmp_path_factory):
    """One installation with both functions and a worker of two slots, for all tests that do not harm it."""
    with contextlib.ExitStack() as ending:
        broker = RestartableValkey()
        ending.callback(broker.stop)
        stack = Stack(
            tmp_path_factory.mktemp("shared"),
            broker_url=broker.url,
            database_url=None,
            providers=[provider(request.getfixturevalue("_simulated").openai_url)],
            settings={**SOURCE, **SINK, "retry": {"max_attempts": 3, "base_s": 0.2}},
        )
        ending.callback(stack.close)
        stack.give_database(request.getfixturevalue("sqlite_file"))
        (stack.home / "mine.py").write_text(MINE)
        yield stack, stack.worker(concurrency=2)


@pytest.fixture
def stack(installation, sim):
    return installation[0]


@pytest.fixture
def worker(installation, sim):
    return installation[1]


@pytest.fixture
def with_mine(make_stack, sim):
    """Makes an installation of the test's own with the user's module beside its settings."""

    def make(*, settings, database="sqlite"):
        stack = make_stack(
            database=database, providers=[provider(sim.openai_url)], settings=settings
        )
        (stack.home / "mine.py").write_text(MINE)
        return stack

    return make


def store(stack, texts):
    """Put texts into the user's store."""
    folder = stack.home / "store" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def set_fault(stack, of, document_id, kind):
    folder = stack.home / "faults" / of
    folder.mkdir(parents=True, exist_ok=True)
    (folder / document_id).write_text(kind)


def no_fault(stack, of, document_id):
    (stack.home / "faults" / of / document_id).unlink()


def lines(stack, name):
    path = stack.home / name
    return path.read_text().splitlines() if path.exists() else []


def table(stack):
    """What the sink was given, by job."""
    found = collections.defaultdict(list)
    for line in lines(stack, "table"):
        row = json.loads(line)
        found[row["job_id"]].append(row)
    return found


def delivered(stack, batch):
    """What the sink was given of each job of a batch, once it was given all of them."""
    wanted = {row["job_id"] for row in stack.results(batch)}
    eventually(lambda: wanted <= table(stack).keys(), "all were delivered")
    return {job_id: rows for job_id, rows in table(stack).items() if job_id in wanted}


# --- [documents] source


def test_texts_come_from_the_users_store_and_an_unchanged_one_is_paid_once(stack, sim):
    texts = {
        "bridge": "A bridge was built over the river in 1901.",
        "marked": "\ufeffA text with a byte order mark.",
        "blank": " \n",
        "nul": "text\0text",
        "utf16": "A text of Windows.".encode("utf-16"),
    }
    store(stack, texts)
    (stack.home / "known.txt").write_text("A stored text.")
    stack.inside("documents", "add", "known.txt", "--id", "known")
    ids = [*texts, "known", "unknown"]
    (stack.home / "ids").write_bytes("\ufeff".encode() + "\r\n\r\n".join(ids).encode())
    batch = stack.submit("summarize", "--ids-from", "ids")
    assert stack.finished(batch)["completed"] == 4
    printed = stack.results(batch)
    errors = {row["document_id"]: row["error"] and row["error"]["type"] for row in printed}
    assert errors == {
        "bridge": None,
        "marked": None,
        "known": None,
        "unknown": "DocumentNotFound",
        "blank": "InvalidDocument",
        "nul": "InvalidDocument",
        "utf16": None,
    }
    assert "known" not in lines(stack, "asked")  # stored texts win
    given = delivered(stack, batch)
    for row in printed:  # each ended job, once, as it is printed
        assert given[row["job_id"]] == [{**row, "batch_id": batch, "tenant": "default"}]

    store(stack, {"bridge": "The bridge fell in 1950."})
    again = stack.submit("summarize", "bridge", "marked")
    assert stack.finished(again)["completed"] == 2
    cached = {row["document_id"]: row["cached"] for row in stack.results(again)}
    assert cached == {"bridge": False, "marked": True}
    # A text is the same question, wherever it is stored.
    (stack.home / "x.txt").write_text("The bridge fell in 1950.")
    stack.inside("documents", "add", "x.txt", "--id", "x")
    assert stack.finished(stack.submit("summarize", "x"))["cached"] == 1
    assert sim.stats()["answered"] == 5


def test_a_store_that_fails_spends_attempts_and_no_word_of_it_is_kept(stack, worker):
    store(stack, {"patient": "The text of a patient, at last."})
    set_fault(stack, "source", "patient", "slow disk")
    batch = stack.submit("summarize", "patient")
    assert stack.finished(batch)["completed"] == 1
    (row,) = stack.results(batch)
    assert stack.job(row["job_id"]).attempts == 3
    assert stack.job(row["job_id"]).deferrals == 0
    assert lines(stack, "asked").count("patient") == 3
    assert "source-failed" in worker.output()
    assert "secret" not in worker.output()


def test_a_store_that_never_works_ends_in_its_typed_error_and_costs_no_slot(stack):
    # What asyncio raises in a cancelled task is no Exception; more tries than there are slots.
    kinds = {"offline": "down", "aborted": "cancelled"}
    for name, kind in kinds.items():
        set_fault(stack, "source", name, kind)
    batch = stack.submit("summarize", *kinds)
    assert stack.finished(batch)["failed"] == 2
    assert {row["document_id"]: row["error"] for row in stack.results(batch)} == {
        "offline": {
            "type": "DocumentSourceFailed",
            "message": "mine:fetch raised ConnectionError",
        },
        "aborted": {"type": "DocumentSourceFailed", "message": "mine:fetch raised CancelledError"},
    }
    assert [lines(stack, "asked").count(name) for name in kinds] == [3, 3]
    # The store is back, and so are the jobs.
    for name in kinds:
        no_fault(stack, "source", name)
        store(stack, {name: f"The text of {name}."})
    stack.inside("retry", batch)
    assert stack.finished(batch)["completed"] == 2


def test_files_of_the_store_are_converted_by_one_process_after_the_other(stack):
    names = ("one.pdf", "two.pdf", "three.pdf")
    store(stack, {name: nasty.pdf([f"The text of {name}."]) for name in names})
    assert stack.finished(stack.submit("summarize", "one.pdf"))["completed"] == 1
    (converter,) = converters_in(stack.home)
    assert stack.finished(stack.submit("summarize", "two.pdf"))["completed"] == 1
    assert converters_in(stack.home) == {converter}

    # It is gone, and the machine has no room for another one: the job waits, and spends no attempt.
    os.kill(converter, signal.SIGKILL)
    set_fault(stack, "source", "three.pdf", "no process")
    batch = stack.submit("summarize", "three.pdf")
    eventually(lambda: stack.status(batch)["waiting"], "the job waits")
    assert "no process can be started" in json.dumps(stack.status(batch))
    (row,) = stack.results(batch)
    assert stack.job(row["job_id"]).attempts == 0
    stack.inside("cancel", batch)


def test_a_wrong_function_ends_the_worker_with_one_line(stack, monkeypatch):
    monkeypatch.setitem(stack.env, "LLMTASKS_RESULTS__SINK", "nowhere:f")
    done = stack.cli("worker", code=2)
    assert "results.sink: nowhere:f: there is no module nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_list_of_ids_with_a_broken_line_submits_nothing(stack):
    def jobs_there():
        with stack.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(tables.jobs))

    before = jobs_there()
    (stack.home / "broken-ids").write_bytes(b"one\ntwo\nM\xfcnchen\n")
    done = stack.cli("submit", "summarize", "--ids-from", "broken-ids", code=2)
    assert "line 3 is not UTF-8" in done.stderr
    assert jobs_there() == before


# --- [results] sink


def test_a_row_that_the_sink_refuses_stops_no_other(stack, worker):
    refused = {"poison": "down", "strange poison": "cancelled"}
    for name, kind in refused.items():
        set_fault(stack, "sink", name, kind)
    stack.finished(stack.submit("summarize", *refused))
    eventually(lambda: outbox.waiting(stack.database).failing == 2, "both were refused")
    others = stack.submit("summarize", "unknown", "also unknown")
    stack.finished(others)
    assert len(delivered(stack, others)) == 2
    # The sink has a row before its worker can say so.
    eventually(lambda: outbox.waiting(stack.database).count == 2, "only the refused are left")
    assert "sink-failed" in worker.output()
    assert "secret" not in worker.output()
    for name in refused:
        no_fault(stack, "sink", name)
    eventually(lambda: outbox.waiting(stack.database).count == 0, "they were tried again")


def test_a_job_that_is_retried_is_delivered_again_and_a_cancelled_one_never(stack, sim):
    set_fault(stack, "source", "unwanted", "later")
    unwanted = stack.submit("summarize", "unwanted")
    eventually(lambda: "unwanted" in lines(stack, "asked"), "its store was asked")
    stack.inside("cancel", unwanted)

    store(stack, {"disputed": "A text about which nobody wants to speak at first."})
    sim.faults(kind="refusal", next=1)
    batch = stack.submit("summarize", "disputed")
    assert stack.finished(batch)["failed"] == 1
    delivered(stack, batch)
    stack.inside("retry", batch)
    assert stack.finished(batch)["completed"] == 1
    (job_id,) = delivered(stack, batch)
    eventually(lambda: len(table(stack)[job_id]) == 2, "it was delivered again")
    assert [row["state"] for row in table(stack)[job_id]] == ["failed", "completed"]
    (cancelled,) = stack.results(unwanted)
    assert cancelled["state"] == "cancelled"
    assert cancelled["job_id"] not in table(stack)


def test_two_workers_on_postgresql_deliver_each_ended_job_once(with_mine, sim):
    stack = with_mine(settings=SINK, database="postgresql")
    ids = stack.documents(20)
    sim.faults({"kind": "refusal", "match": "doc-00003", "rate": 1.0})
    for _ in range(2):
        stack.worker(concurrency=4)
    batch = stack.submit("summarize", *ids, "unknown")
    assert stack.finished(batch)["completed"] == 19
    rows = delivered(stack, batch)
    for printed in stack.results(batch):
        assert rows[printed["job_id"]] == [{**printed, "batch_id": batch, "tenant": "default"}]
    assert [job["state"] for (job,) in rows.values()].count("failed") == 2
    eventually(lambda: outbox.waiting(stack.database).count == 0, "the outbox is empty")


def test_a_delivery_that_hangs_is_in_one_hand_until_its_worker_dies_and_stops_none_from_stopping(
    with_mine,
):
    stack = with_mine(settings={**SINK, "worker": {"drain_s": 1.0}})
    ids = stack.documents(5)
    set_fault(stack, "sink", ids[0], "hangs")

    def claimed_until():
        rows = tables.outbox.c
        with stack.database.read() as connection:
            return connection.scalar(sa.select(sa.func.max(rows.claimed_until))) or 0.0

    victim = stack.worker()
    batch = stack.submit("summarize", "--all")
    assert stack.finished(batch)["completed"] == 5
    eventually(lambda: lines(stack, "hanging"), "a delivery is on its way")
    first = stack.worker()
    eventually(lambda: len(table(stack)) == 4, "the others came back, and were delivered")
    before = claimed_until()
    eventually(lambda: claimed_until() > before, "the claim is renewed")
    assert len(lines(stack, "hanging")) == 1
    victim.kill()
    eventually(lambda: len(lines(stack, "hanging")) == 2, "another worker has it in hand")
    assert first.terminate(timeout=20.0) == 0
    no_fault(stack, "sink", ids[0])
    stack.worker()
    assert len(delivered(stack, batch)) == 5


def test_a_worker_that_stops_delivers_what_is_due(with_mine):
    stack = with_mine(settings={**SINK, "dispatch": {"interval_s": 60.0}})
    ids = stack.documents(3)
    worker = stack.worker()
    stack.script(
        """
        import sys
        from celery import group
        from llmtasks import process_document
        group(process_document.s(d, "summarize") for d in sys.argv[1:]).apply_async().get(timeout=60)
        """,
        *ids,
    )
    assert worker.terminate() == 0
    assert len(table(stack)) == 3
