"""Jobs that were not done in their time, and messages that ask for too much, in one real worker."""

from __future__ import annotations

import contextlib

import pytest
from support.stack import Stack, eventually, provider
from support.valkey import RestartableValkey

#: What became of a job, as its caller in `.get()` hears it.
TOLD = """
import json
from llmtasks import add_document, process_document
def told(sent):
    try:
        return sent.get(timeout=80)["status"]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture(scope="module")
def installation(request, tmp_path_factory):
    """One installation with a worker of two slots."""
    with contextlib.ExitStack() as ending:
        broker = RestartableValkey()
        ending.callback(broker.stop)
        stack = Stack(
            tmp_path_factory.mktemp("shared"),
            broker_url=broker.url,
            database_url=None,
            providers=[provider(request.getfixturevalue("_simulated").openai_url)],
            settings={"results": {"max_output_bytes": 200}},
        )
        ending.callback(stack.close)
        stack.give_database(request.getfixturevalue("sqlite_file"))
        stack.worker(concurrency=2)
        yield stack


@pytest.fixture
def stack(installation, sim):
    return installation


def test_running_and_queued_jobs_fail_at_their_deadline_and_their_callers_hear_why(stack, sim):
    sim.latency(60.0)
    stack.script(
        TOLD
        + """
for n in range(3):
    add_document(f"The late text {n} of many.", f"late-{n}")
for n in range(2):
    process_document.apply_async((f"late-{n}", "summarize"), {"deadline_s": 12}, task_id=f"late-{n}")
"""
    )
    eventually(lambda: sim.stats()["in_flight"] == 2, "both slots are taken")
    got = stack.script(
        TOLD
        + """
from llmtasks.celery_app import app
process_document.apply_async(("late-2", "summarize"), {"deadline_s": 1.5}, task_id="late-2")
print(json.dumps([told(app.AsyncResult(f"late-{n}")) for n in range(3)]))
"""
    )
    assert got == [
        *["DeadlineExceeded: not done within 12 s: sim had not answered"] * 2,
        "DeadlineExceeded: not done within 1.5 s: it was queued",
    ]
    # Their calls were given up, and may have been paid.
    eventually(lambda: sim.stats()["in_flight"] == 0, "the calls were given up")
    assert [len(stack.calls(f"late-{n}")) for n in range(3)] == [1, 1, 0]
    assert [call.outcome for call in stack.calls("late-0")] == ["cancelled"]
    assert stack.json("status", "late-2", code=1, inside=True)["failed"] == 1
    # Its time starts anew; and an equal question is answered from what is stored, whatever its deadline.
    sim.latency(0.0)
    stack.inside("retry", "late-0", "--failed")
    assert stack.finished("late-0")["completed"] == 1
    batch = stack.submit("summarize", "late-0", "--deadline", "60")
    assert stack.finished(batch)["cached"] == 1


def test_what_is_too_large_or_wrong_fails_by_name_and_its_neighbours_go_on(stack, sim):
    got = stack.script(
        TOLD
        + """
from llmtasks.celery_app import TASK_NAME, app
add_document("A short text about the harbour.", "good")
add_document(", ".join(f"boat number {n} came in late" for n in range(40)), "long")
large = "x" * 10_000_000
messages = {
    "large-id": (large, "summarize", {}),
    "large-type": ("good", large, {}),
    "large-options": ("good", "summarize", {"style": "x" * 70_000}),
    "soon": ("good", "summarize", {"deadline_s": "soon"}),
    "no-number": ("good", "summarize", {"max_words": float("nan")}),
    "in-time": ("good", "summarize", {"deadline_s": 600}),
}
with app.producer_or_acquire() as producer:
    for job_id, (document_id, task_type, kwargs) in messages.items():
        message = app.amqp.create_task_message(job_id, TASK_NAME, (document_id, task_type), kwargs)
        app.amqp.send_task_message(producer, TASK_NAME, message, queue="llm.summarize")
found = {job_id: told(app.AsyncResult(job_id)) for job_id in messages}
found["large-output"] = told(process_document.apply_async(
    ("long", "summarize"), task_id="large-output"))
print(json.dumps(found))
"""
    )
    assert {job_id: one.partition(":")[0] for job_id, one in got.items()} == {
        "large-id": "InvalidOption",
        "large-type": "InvalidOption",
        "large-options": "InvalidOption",
        "soon": "InvalidOption",
        "no-number": "InvalidOption",
        "in-time": "completed",
        "large-output": "OutputTooLarge",
    }
    assert max(len(one) for one in got.values()) < 300
    assert stack.job("in-time").deadline_s == 600.0
    assert stack.job("large-options").error_type == "InvalidOption"
    assert [call.outcome for call in stack.calls("large-output")] == ["ok"]
    assert stack.job("large-output").state == "failed"


def test_a_parked_job_fails_at_its_deadline_not_when_it_is_due(stack, sim):
    sim.faults(kind="429", next=1, retry_after=30)
    stack.script(TOLD + "add_document('A text that has to wait.', 'parked')")
    batch = stack.submit("summarize", "parked", "--deadline", "5")
    status = stack.finished(batch, timeout=60.0)
    (row,) = stack.results(batch)
    assert (status["state"], status["reasons"]) == ("failed", {})
    assert row["error"]["type"] == "DeadlineExceeded"
    assert row["error"]["message"] == "not done within 5 s: it was waiting: sim: RateLimitError"
    assert sim.stats()["requests"] == 1
    assert stack.job(row["job_id"]).deferrals == 1
