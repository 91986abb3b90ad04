"""Whoever waits in `.get()` hears how it ended, whatever stood in between."""

from __future__ import annotations

import signal
import sys

import pytest
from support.stack import eventually, provider


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)])


SEND = """
from llmtasks import add_document, process_document
add_document("Somebody waits for this text.", "d")
process_document.apply_async(("d", "summarize"), task_id="awaited")
"""

#: A worker whose slots have one second after the drain to hand back their jobs.
IMPATIENT = """
from llmtasks.cli import main
from workers import lifecycle
lifecycle.GIVE_UP_S = 1.0
main()
"""

GET = """
import json
from llmtasks.celery_app import app
try:
    print(json.dumps(app.AsyncResult("awaited").get(timeout=60)["status"]))
except Exception as error:
    print(json.dumps(type(error).__name__))
"""


def test_the_rest_of_a_chain_runs_after_its_first_job_was_parked(stack, sim):
    sim.faults(kind="429", next=1, retry_after=6)
    stack.worker()
    got = stack.script(
        """
        import json
        from celery import chain
        from llmtasks import add_document, process_document
        for name in "ab":
            add_document(f"The text {name} of a chain.", name)
        both = chain(process_document.s("a", "summarize"), process_document.si("b", "summarize"))
        print(json.dumps(both.apply_async().get(timeout=80)["document_id"]))
        """
    )
    assert got == "b"


def test_a_cancelled_running_job_ends_its_callers_wait(stack, sim):
    sim.latency(30.0)
    stack.worker()
    stack.script(SEND)
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    stack.inside("cancel", "awaited")
    assert stack.script(GET) == "JobCancelled"
    # The call was given up, and is counted.
    eventually(lambda: sim.stats()["in_flight"] == 0, "the call was given up")
    assert [
        call.outcome for call in eventually(lambda: stack.calls("awaited"), "it is counted")
    ] == ["cancelled"]


def test_a_job_cancelled_without_a_broker_ends_its_callers_wait(make_stack, sim, own_valkey):
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
    stack.script(SEND)
    own_valkey.stop()
    stack.cli("cancel", "awaited")
    own_valkey.start()  # empty: the job's own message is gone
    stack.worker()
    assert stack.script(GET) == "JobCancelled"


def test_a_job_revoked_through_celery_is_a_cancelled_job(stack, sim):
    stack.worker(concurrency=2)
    stack.script("from llmtasks.celery_app import app; app.control.revoke('awaited')")
    stack.script(SEND)
    eventually(lambda: stack.job("awaited").state == "cancelled", "the row says so")
    assert sim.stats()["requests"] == 0


def test_a_caller_is_told_while_the_queue_of_the_type_rests(stack, sim):
    sim.faults(kind="429", retry_after=600)
    stack.script(SEND)
    worker = stack.worker(concurrency=2, queues="summarize")
    eventually(lambda: "queue-rests" in worker.output(), "the queue rests")
    got = stack.script(
        """
        import json
        from llmtasks import cancel, process_document
        late = process_document.apply_async(("d", "summarize"), {"deadline_s": 1}, task_id="late")
        gone = process_document.apply_async(("d", "summarize"), task_id="gone")
        cancel("gone")
        def told(sent):
            try:
                return sent.get(timeout=40)["status"]
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        print(json.dumps([told(late), told(gone)]))
        """
    )
    assert got == [
        "DeadlineExceeded: not done within 1 s: it was queued",
        "JobCancelled: the job was cancelled",
    ]
    assert "queue-resumes" not in worker.output()


def test_a_result_waits_for_a_redis_that_is_away(make_stack, sim, own_valkey):
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
    sim.latency(1.5)
    stack.worker()
    stack.script(SEND)
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    own_valkey.stop()
    eventually(lambda: stack.job("awaited").state == "completed", "the job is done without Redis")
    own_valkey.start()
    assert stack.script(GET) == "completed"
    assert sim.stats()["answered"] == 1


def test_every_caller_is_answered_after_redis_was_lost_with_all_it_held(
    make_stack, sim, own_valkey
):
    """The outage is longer than a search for forgotten messages; worker and program live through it."""
    stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
    sim.latency(1.0)
    worker = stack.worker(concurrency=2)
    program = stack.start(
        [
            sys.executable,
            "-c",
            """if True:
            from llmtasks import add_document, process_document
            def send(n):
                add_document(f"The text {n} of many.", f"d{n}")
                return process_document.delay(f"d{n}", "summarize")
            sent = [send(n) for n in range(6)]
            print("sent", flush=True)
            assert sent[0].get(timeout=60)["status"] == "completed"
            print("first", flush=True)
            assert all(one.get(timeout=100)["status"] == "completed" for one in sent)
            print("all", flush=True)
            assert send(11).get(timeout=60)["status"] == "completed"
            print("again", flush=True)
            """,
        ],
        "program",
    )
    eventually(lambda: "first" in program.output(), "it is at work")
    own_valkey.stop()
    eventually(lambda: "feed-failed" in worker.output(), "maintenance ran into the outage")
    own_valkey.start()
    eventually(lambda: not program.running, lambda: f"it ended: {program.output()}", timeout=120.0)
    assert program.output().split() == ["sent", "first", "all", "again"]


def test_a_job_whose_workers_died_too_often_ends_its_callers_wait(stack, sim):
    sim.faults(kind="hang", rate=1.0)
    stack.configure(delivery={"max_crashes": 1, "lease_s": 2.0})
    worker = stack.worker()
    stack.script(SEND)
    eventually(lambda: sim.stats()["in_flight"] == 1, "the call is in flight")
    worker.kill()
    stack.worker()
    assert stack.script(GET) == "WorkerLost"


def test_celerys_own_shutdown_drains_too(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)], settings={"worker": {"drain_s": 1.0}})
    sim.faults(kind="429", rate=1.0, retry_after=2)
    stack.documents(2)
    batch = stack.submit("summarize", "--all")
    worker = stack.worker(concurrency=2)
    eventually(lambda: sim.stats()["requests"] > 0, "it is at work")
    stack.script("from llmtasks.celery_app import app; app.control.shutdown()")
    assert worker.wait(30.0) == 0
    assert stack.status(batch)["running"] == 0


def test_a_worker_stops_although_its_broker_hangs(make_stack, sim, own_valkey):
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        broker=own_valkey,
        settings={"worker": {"drain_s": 1.0}},
    )
    worker = stack.worker(launcher=IMPATIENT)
    own_valkey.signal(signal.SIGSTOP)  # its fixture kills it, which needs no SIGCONT
    worker.signal(signal.SIGTERM)
    # By its own decision, long before a socket gives up.
    assert worker.wait(20.0) == 1
    assert "drain-gave-up" in worker.output()


def test_a_producer_that_forks_loses_nothing(stack):
    found = stack.script(
        """
        import json, os
        from llmtasks import add_document
        from llmtasks.client import document_ids
        add_document("Written before the fork.", "parent")
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # until the parent has gone
            add_document("Written after the fork.", "child")
            print(json.dumps(list(document_ids())), flush=True)
            os._exit(0)
        os.close(read)
        os.close(write)
        """
    )
    assert found == ["child", "parent"]
    assert stack.script(
        "import json; from llmtasks.client import document_ids; print(json.dumps(list(document_ids())))"
    ) == ["child", "parent"]
