"""What a user's program may do: delay, groups, batches, results; and what it is told when that is wrong."""

from __future__ import annotations

import pytest
from support.stack import eventually, provider


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)])


def test_delay_returns_the_documented_dict(stack, sim):
    stack.worker()
    result = stack.script(
        """
        import json
        from llmtasks import add_document, get_result, process_document
        add_document("Ships left the harbour of Bergen in spring.", "doc-123")
        sent = process_document.delay("doc-123", "summarize")
        got = sent.get(timeout=60)
        found = get_result(sent.id)
        assert found["output"] == found.output and found["error"] is None
        assert found["usage"] == got["usage"]
        print(json.dumps([sent.id, got, found.output]))
        """
    )
    job_id, got, output = result
    assert got.keys() == {
        "status",
        "document_id",
        "task_type",
        "job_id",
        "cached",
        "provider",
        "model",
        "usage",
        "cost_usd",
    }
    assert (got["status"], got["document_id"], got["task_type"]) == (
        "completed",
        "doc-123",
        "summarize",
    )
    assert got["job_id"] == job_id
    assert got["usage"].keys() == {"input_tokens", "output_tokens"}
    assert got["cost_usd"] is None  # nobody knows what a simulated model costs
    assert output
    assert sim.stats()["answered"] == 1


def test_a_group_gathers_its_results_and_is_a_batch(stack):
    stack.worker()
    group_id, got = stack.script(
        """
        import json
        from celery import group
        from llmtasks import add_document, process_document
        ids = [add_document(f"Text number {n} of the archive.", f"d{n}") for n in range(12)]
        sent = group(process_document.s(d, "summarize") for d in ids).apply_async()
        print(json.dumps([sent.id, [r["document_id"] for r in sent.get(timeout=90)]]))
        """
    )
    assert got == [f"d{n}" for n in range(12)]
    status = stack.status(group_id)
    assert (status["state"], status["completed"]) == ("completed", 12)


def test_a_chord_calls_its_body_also_after_a_parked_header(stack, sim):
    sim.faults(kind="429", next=1, retry_after=6)
    stack.worker()
    count = stack.script(
        """
        import json
        from celery import chord
        from llmtasks import add_document, process_document
        from llmtasks.celery_app import app
        ids = [add_document(f"Text number {n} of the archive.", f"d{n}") for n in range(3)]
        header = [process_document.s(d, "summarize") for d in ids]
        body = process_document.si(add_document("The sum of it all.", "sum"), "summarize")
        print(json.dumps(chord(header)(body).get(timeout=90)["document_id"]))
        """
    )
    assert count == "sum"


def test_wrong_requests_fail_at_once_and_record_nothing(stack):
    errors = stack.script(
        """
        import json
        from llmtasks import process_document, submit_batch
        def told(call):
            try:
                call()
            except Exception as error:
                return [type(error).__name__, str(error)]
        print(json.dumps([
            told(lambda: process_document.delay("d", "sumarize")),
            told(lambda: process_document.delay("d", "summarize", max_wrods=5)),
            told(lambda: process_document.delay("d", "translate")),
            told(lambda: process_document.delay("d", "summarize", priority=12)),
            told(lambda: process_document.apply_async(("d", "summarize"), countdown=5)),
            told(lambda: submit_batch(["d"], "translate", target_language="klingonish")),
            told(lambda: submit_batch([], "summarize")),
        ]))
        """
    )
    assert [name for name, _ in errors] == [
        "UnknownTaskType",
        "InvalidOption",
        "InvalidOption",
        "InvalidOption",
        "InvalidOption",
        "InvalidOption",
        "UsageError",
    ]
    assert "summarize" in errors[0][1]
    assert "max_wrods" in errors[1][1]
    assert "target_language" in errors[2][1]


def test_an_unknown_document_fails_its_job_with_its_typed_error(stack, sim):
    stack.worker()
    names = stack.script(
        """
        import json
        from llmtasks import get_result, process_document
        sent = process_document.delay("nowhere", "summarize")
        def told(call):
            try:
                call()
            except Exception as error:
                return [type(error).__module__, type(error).__name__, "nowhere" in str(error)]
        print(json.dumps([told(lambda: sent.get(timeout=60)), told(lambda: get_result(sent.id))]))
        """
    )
    assert names == [["llmtasks.errors", "DocumentNotFound", True]] * 2
    assert sim.stats()["answered"] == 0


def test_broken_text_is_refused_by_name(stack):
    (stack.home / "broken.txt").write_bytes(b"\xff\xfe\x00caf\xe9")
    (stack.home / "blank.txt").write_text("  \n ")
    (stack.home / "good.txt").write_text("A good text.")
    files = ("broken.txt", "blank.txt", "good.txt", "no.txt")
    lines = stack.json("documents", "add", *files, code=1, inside=True)
    assert [line["status"] for line in lines] == ["error", "error", "added", "error"]
    assert all(line["path"] in line["error"] for line in lines if line["error"])


def test_the_same_id_twice_is_one_job(stack, sim):
    stack.worker()
    got = stack.script(
        """
        import json
        from llmtasks import add_document, process_document
        add_document("Once is enough for this text.", "d")
        one, two = (
            process_document.apply_async(("d", "summarize"), task_id="the-id") for _ in range(2)
        )
        print(json.dumps([one.get(timeout=60)["job_id"], two.get(timeout=60)["job_id"]]))
        """
    )
    assert got == ["the-id", "the-id"]
    assert len(stack.results("the-id")) == 1
    assert sim.stats()["answered"] == 1


def test_a_hundred_duplicates_of_a_message_pay_once(stack, sim):
    sim.latency(0.5)
    stack.worker(concurrency=8)
    stack.worker(concurrency=8)
    got = stack.script(
        """
        import json
        from llmtasks import add_document
        from llmtasks.celery_app import app, send
        add_document("A text that rings a hundred times.", "d")
        with app.producer_or_acquire() as producer:
            for _ in range(100):
                send(producer, job_id="dup", args=("d", "summarize"), kwargs={}, shown="{}",
                     keep_result=True, group_id=None, canvas=None)
        print(json.dumps(app.AsyncResult("dup").get(timeout=60)["status"]))
        """
    )
    assert got == "completed"
    assert sim.stats()["answered"] == 1
    assert [row["state"] for row in stack.results("dup")] == ["completed"]


def test_a_program_without_our_package_can_send_by_name(stack, sim):
    stack.worker()
    stack.script("from llmtasks import add_document; add_document('From afar, a text.', 'd')")
    got = stack.script(
        f"""
        import json
        from celery import Celery
        app = Celery("foreign", broker={stack.broker_url!r}, backend={stack.broker_url!r})
        app.send_task("llmtasks.process_document", args=["d", "summarize"],
                      queue="llm.summarize", task_id="by-name")
        print(json.dumps("sent"))
        """
    )
    assert got == "sent"
    eventually(
        lambda: stack.inside("status", "by-name", code=None).returncode == 0,
        "the row was inserted",
    )
    assert stack.finished("by-name")["completed"] == 1


def test_a_group_survives_a_broker_that_is_away(make_stack, sim, own_valkey):
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
    own_valkey.stop()
    seconds, group_id = stack.script(
        """
        import json, time
        from celery import group
        from llmtasks import add_document, process_document
        ids = [add_document(f"Text {n} for nobody yet.", f"d{n}") for n in range(10)]
        process_document.app.conf
        started = time.monotonic()
        sent = group(process_document.s(d, "summarize") for d in ids).apply_async()
        print(json.dumps([time.monotonic() - started, sent.id]))
        """
    )
    assert seconds < 6.0  # once the bounded wait, then at once, and the machine's own pace
    own_valkey.start()
    stack.worker()
    assert stack.finished(group_id)["completed"] == 10


def test_a_program_that_lives_through_an_outage_never_waits_long_and_publishes_again(
    make_stack, sim, own_valkey
):
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
    program = stack.talk(
        """
        import sys, time
        import sqlalchemy as sa
        from llmtasks import add_document, process_document
        from llmtasks.store.tables import jobs
        from llmtasks.tasks import database
        add_document("A text for a long-lived program.", "d")
        for _ in sys.stdin:
            started = time.monotonic()
            sent = process_document.delay("d", "summarize")  # the last result is dropped here
            seconds = time.monotonic() - started
            with database().read() as connection:
                which = sa.select(jobs.c.sent_at).where(jobs.c.job_id == sent.id)
                published = connection.execute(which).scalar_one() is not None
            print(f"{seconds:.2f} {published}", flush=True)
        """
    )

    def delay() -> tuple[float, bool]:
        seconds, published = program("go").split()
        return float(seconds), published == "True"

    assert delay()[1]
    own_valkey.stop()
    for _ in range(3):
        seconds, published = delay()
        assert seconds < 2.0 + 1.0  # two seconds, and the machine's own pace
        assert not published
    own_valkey.start()
    eventually(lambda: delay()[1], "it publishes again")


def test_a_job_cannot_be_run_where_it_is_written(stack):
    error = stack.script(
        """
        import json
        from llmtasks import process_document
        try:
            process_document.apply(("d", "summarize"))
        except Exception as error:
            print(json.dumps(type(error).__name__))
        """
    )
    assert error == "UsageError"


def test_a_producer_survives_a_broker_that_is_away(make_stack, sim, own_valkey):
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
    own_valkey.stop()
    seconds, ids = stack.script(
        """
        import json, time
        from llmtasks import add_document, process_document
        add_document("The broker is away, the row is not.", "d")
        process_document.app.conf  # settings are read once, at first use
        started = time.monotonic()
        sent = [process_document.delay("d", "summarize", fresh=True) for _ in range(3)]
        print(json.dumps([time.monotonic() - started, [s.id for s in sent]]))
        """
    )
    assert seconds < 2.0 + 1.0  # two seconds, and the machine's own pace
    own_valkey.start()
    stack.worker()
    for job_id in ids:
        assert stack.finished(job_id)["completed"] == 1
    got = stack.script(
        f"""
        import json
        from llmtasks.celery_app import app
        print(json.dumps([app.AsyncResult(i).get(timeout=30)["status"] for i in {ids!r}]))
        """
    )
    assert got == ["completed"] * 3
