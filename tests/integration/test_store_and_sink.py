"""The user's own functions in real workers: texts from their store, results into their table."""

from __future__ import annotations

import collections
import json
import time

import pytest
import sqlalchemy as sa
from support.stack import eventually, provider

from llmtasks.store import outbox
from llmtasks.store.tables import jobs

#: A user's module: a folder as the store, a file of lines as the table. Faults are files, too.
MINE = """
import json, os, pathlib, threading, time
HERE = pathlib.Path(__file__).parent
LOCK = threading.Lock()

def note(file, line):
    with LOCK, (HERE / file).open("a") as out:
        out.write(line + "\\n")

def fetch(document_id, *, tenant):
    note("asked", document_id)
    path = HERE / "store" / tenant / document_id
    if (HERE / "store-down").exists():
        raise ConnectionError(f"cannot read {path}: a secret")
    return path.read_bytes() if path.exists() else None

def fail_twice(document_id):
    note("asked", document_id)
    if (HERE / "asked").read_text().count(document_id) < 3:
        raise ConnectionError("a secret")
    return f"The text of {document_id}, at last."

def save(row):
    hangs = HERE / "sink-hangs"
    if hangs.exists() and hangs.read_text() == row["document_id"]:
        note("hanging", row["job_id"])
        time.sleep(600)
    if (HERE / "sink-down").exists() or row["document_id"] == "poison":
        raise ConnectionError("a secret")
    note("table", json.dumps(row))
"""
SOURCE = {"documents": {"source": "mine:fetch"}}
SINK = {"results": {"sink": "mine:save"}}


@pytest.fixture
def with_mine(make_stack, sim):
    """Makes an installation with the user's module beside its settings."""

    def make(*, settings, database="sqlite"):
        stack = make_stack(
            database=database, providers=[provider(sim.openai_url)], settings=settings
        )
        (stack.home / "mine.py").write_text(MINE)
        return stack

    return make


def store(stack, **texts):
    folder = stack.home / "store" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


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


def delivered(stack, count):
    eventually(lambda: len(table(stack)) >= count, f"{count} jobs were delivered")
    eventually(lambda: outbox.waiting(stack.database).count == 0, "the outbox is empty")
    return table(stack)


# --- [documents] source


def test_texts_come_from_the_users_store_and_an_unchanged_one_is_paid_once(with_mine, sim):
    stack = with_mine(settings=SOURCE)
    store(
        stack,
        bridge="A bridge was built over the river in 1901.",
        marked="\ufeffA text with a byte order mark.",
        blank=" \n",
        nul="text\0text",
        utf16="A text of Windows.".encode("utf-16"),
    )
    stack.script("from llmtasks import add_document; add_document('A stored text.', 'known')")
    stack.worker()
    ids = ["bridge", "marked", "known", "unknown", "blank", "nul", "utf16"]
    (stack.home / "ids").write_bytes("\ufeff".encode() + "\r\n\r\n".join(ids).encode())
    batch = stack.submit("summarize", "--ids-from", "ids")
    assert stack.finished(batch)["completed"] == 4
    errors = {row["document_id"]: row["error"] for row in stack.results(batch)}
    assert {name: error and error["type"] for name, error in errors.items()} == {
        "bridge": None,
        "marked": None,
        "known": None,
        "unknown": "DocumentNotFound",
        "blank": "InvalidDocument",
        "nul": "InvalidDocument",
        "utf16": None,
    }
    assert "known" not in lines(stack, "asked")  # stored texts win

    store(stack, bridge="The bridge fell in 1950.")
    again = stack.submit("summarize", "bridge", "marked")
    assert stack.finished(again)["completed"] == 2
    cached = {row["document_id"]: row["cached"] for row in stack.results(again)}
    assert cached == {"bridge": False, "marked": True}
    # A text is the same question, wherever it is stored.
    stack.script("from llmtasks import add_document; add_document('The bridge fell in 1950.', 'x')")
    assert stack.finished(stack.submit("summarize", "x"))["cached"] == 1
    assert sim.stats()["answered"] == 5


def test_a_store_that_fails_spends_attempts_and_no_word_of_it_is_kept(with_mine):
    stack = with_mine(
        settings={
            "documents": {"source": "mine:fail_twice"},
            "retry": {"max_attempts": 3, "base_s": 0.2},
        }
    )
    worker = stack.worker()
    batch = stack.submit("summarize", "slow-disk")
    assert stack.finished(batch)["completed"] == 1
    (row,) = stack.results(batch)
    assert stack.job(row["job_id"]).attempts == 3
    assert stack.job(row["job_id"]).deferrals == 0
    assert len(lines(stack, "asked")) == 3
    assert "source-failed" in worker.output()
    assert "secret" not in worker.output()


def test_a_store_that_never_works_ends_in_its_typed_error(with_mine):
    stack = with_mine(settings={**SOURCE, "retry": {"max_attempts": 2, "base_s": 0.2}})
    (stack.home / "store-down").touch()
    stack.worker()
    batch = stack.submit("summarize", "bridge")
    assert stack.finished(batch)["failed"] == 1
    (row,) = stack.results(batch)
    assert row["error"] == {
        "type": "DocumentSourceFailed",
        "message": "mine:fetch raised ConnectionError",
    }
    assert len(lines(stack, "asked")) == 2
    # The store is back, and so is the job.
    (stack.home / "store-down").unlink()
    store(stack, bridge="A bridge was built.")
    stack.cli("retry", batch)
    assert stack.finished(batch)["completed"] == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"documents": {"source": "mine:absent"}}, "documents.source: mine:absent: mine ("),
        ({"results": {"sink": "nowhere:f"}}, "results.sink: nowhere:f: there is no module nowhere"),
    ],
)
def test_a_wrong_function_ends_the_worker_with_one_line(with_mine, settings, says):
    stack = with_mine(settings=settings)
    done = stack.cli("worker", code=2)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_list_of_ids_with_a_broken_line_submits_nothing(with_mine):
    stack = with_mine(settings=SOURCE)
    (stack.home / "ids").write_bytes(b"one\ntwo\nM\xfcnchen\n")
    done = stack.cli("submit", "summarize", "--ids-from", "ids", code=2)
    assert "line 3 is not UTF-8" in done.stderr
    with stack.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(jobs)).scalar() == 0


# --- [results] sink


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_each_ended_job_is_delivered_as_it_is_printed(with_mine, sim, database):
    stack = with_mine(settings=SINK, database=database)
    ids = stack.documents(20)
    sim.faults({"kind": "refusal", "match": "doc-00003", "rate": 1.0})
    for _ in range(2):
        stack.worker(concurrency=4)
    batch = stack.submit("summarize", *ids, "unknown")
    assert stack.finished(batch)["completed"] == 19
    rows = delivered(stack, 21)
    for printed in stack.results(batch):
        (given,) = rows[printed["job_id"]]
        assert given == {**printed, "batch_id": batch, "tenant": "default"}
    assert [job["state"] for (job,) in rows.values()].count("failed") == 2


def test_a_job_that_is_retried_is_delivered_again_and_a_cancelled_one_never(with_mine, sim):
    stack = with_mine(settings=SINK)
    stack.documents(1)
    cancelled = stack.submit("summarize", "--all")
    stack.cli("cancel", cancelled)
    sim.faults(kind="refusal", next=1)
    stack.worker()
    batch = stack.submit("summarize", "--all")
    assert stack.finished(batch)["failed"] == 1
    delivered(stack, 1)
    stack.cli("retry", batch)
    assert stack.finished(batch)["completed"] == 1
    eventually(lambda: len(lines(stack, "table")) == 2, "it was delivered again")
    ((first, second),) = table(stack).values()
    assert (first["state"], second["state"]) == ("failed", "completed")


def test_a_worker_killed_during_a_delivery_leaves_it_to_the_next(with_mine):
    stack = with_mine(settings=SINK)
    ids = stack.documents(5)
    (stack.home / "sink-hangs").write_text(ids[0])
    victim = stack.worker()
    batch = stack.submit("summarize", "--all")
    assert stack.finished(batch)["completed"] == 5
    eventually(lambda: lines(stack, "hanging"), "a delivery is on its way")
    since = time.monotonic()
    stack.worker()
    eventually(lambda: len(table(stack)) == 4, "the others came back, and were delivered")
    eventually(lambda: time.monotonic() > since + 5.0, "the claim would have run out")
    assert (
        len(lines(stack, "hanging")) == 1
    )  # while its worker lives, the row is in its hands alone
    (stack.home / "sink-hangs").unlink()
    victim.kill()
    assert delivered(stack, 5).keys() == {row["job_id"] for row in stack.results(batch)}


def test_a_row_that_the_sink_refuses_stops_no_other(with_mine):
    stack = with_mine(settings=SINK)
    stack.script("from llmtasks import add_document; add_document('A poisonous text.', 'poison')")
    worker = stack.worker()
    first = stack.submit("summarize", "poison")
    stack.finished(first)
    eventually(lambda: outbox.waiting(stack.database).failing == 1, "it was refused")
    ids = stack.documents(5)
    stack.finished(stack.submit("summarize", *ids))
    eventually(lambda: len(table(stack)) == 5, "the others were delivered")
    assert outbox.waiting(stack.database).count == 1
    assert "sink-failed" in worker.output()
    assert "secret" not in worker.output()


def test_a_worker_that_stops_delivers_what_is_due(with_mine, sim):
    stack = with_mine(settings={**SINK, "dispatch": {"interval_s": 60.0}})
    ids = stack.documents(3)
    worker = stack.worker()
    eventually(lambda: "worker-ready" in worker.output(), "ready")
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


def test_a_sink_that_hangs_does_not_keep_a_worker_from_stopping(with_mine):
    stack = with_mine(settings={**SINK, "worker": {"drain_s": 1.0}})
    ids = stack.documents(1)
    (stack.home / "sink-hangs").write_text(ids[0])
    worker = stack.worker()
    stack.finished(stack.submit("summarize", "--all"))
    eventually(lambda: lines(stack, "hanging"), "a delivery is on its way")
    assert worker.terminate(timeout=20.0) == 0
    (stack.home / "sink-hangs").unlink()
    stack.worker()
    delivered(stack, 1)
