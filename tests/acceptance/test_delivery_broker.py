"""What a broker and its content may do to workers: half-open links, duplicates, messages that are none."""

from __future__ import annotations

import re
import time
import uuid
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery
from support.delivery import events, full, note, rows, settled, slow
from support.proxy import Proxy
from support.stack import eventually, provider

from workers.maintenance import PUBLISHED_TOGETHER

#: A user's store with a text that ends the process that reads it, after others have begun beside it.
STORE = """
import os, signal, time

def fetch(document_id):
    if document_id == "poison":
        time.sleep(2.0)
        os.kill(os.getpid(), signal.SIGKILL)
    return f"Text {document_id} of the harbour office."
"""


@pytest.fixture
def proxied(make_stack, sim, own_valkey):
    """An installation whose workers reach their broker through a proxy, and the proxy."""
    with Proxy(urlsplit(own_valkey.url).port) as proxy:
        stack = make_stack(providers=[provider(sim.openai_url)], broker=own_valkey)
        stack.configure(broker={"url": f"redis://127.0.0.1:{proxy.port}/0"})
        yield stack, proxy


def control(stack):
    return Celery("watcher", broker=stack.broker_url, set_as_current=False).control


@pytest.mark.parametrize(("times", "jobs"), [slow(1, 10), full(5, 50)])
def test_a_half_open_link_to_the_broker_is_left_within_a_minute(proxied, sim, times, jobs):
    stack, proxy = proxied
    stack.documents(jobs)
    worker = stack.worker()
    asked = control(stack)
    for _ in range(times):
        assert stack.finished(stack.submit("summarize", "--all", "--fresh"))
        eventually(lambda: asked.inspect(timeout=1.0).ping(), "it answers before")
        proxy.abandon()
        abandoned = time.monotonic()
        batch = stack.submit("summarize", "--all", "--fresh")
        pong = eventually(lambda: asked.inspect(timeout=1.0).ping(), "it answers", timeout=60.0)
        answered = time.monotonic() - abandoned
        left = 60.0 - answered
        assert stack.finished(batch, timeout=left)["completed"] == jobs
        note(f"ping after {answered:.1f} s, done after {time.monotonic() - abandoned:.1f} s")
        assert list(pong.values()) == [{"ok": "pong"}]
    assert worker.running
    assert sim.stats()["answered"] == 2 * jobs * times


@pytest.mark.chaos
def test_a_message_delivered_a_hundred_times_to_four_processes_is_acknowledged_and_paid_once(
    make_stack, sim
):
    stack = make_stack(providers=[provider(sim.openai_url)])
    sim.latency(2.0)
    workers = [stack.worker(concurrency=25) for _ in range(4)]
    with events(stack.broker_url) as seen:
        stack.script(
            """
            from llmtasks import add_document
            from llmtasks.celery_app import app, send
            add_document("A text that rings a hundred times.", "d")
            with app.producer_or_acquire() as producer:
                for _ in range(100):
                    send(producer, job_id="dup", args=("d", "summarize"), kwargs={}, shown="{}",
                         keep_result=True, group_id=None, canvas=None)
            """
        )
        eventually(lambda: stack.json("status", "dup", inside=True)["completed"] == 1, "done")
        settled(stack.broker_url)
        eventually(lambda: seen["task-received"] == 100, lambda: str(seen))
    assert sim.stats()["requests"] == 1
    assert len(stack.results("dup")) == 1
    assert len(stack.calls("dup")) == 1
    assert seen["task-failed"] == 0
    assert all("Traceback" not in worker.output() for worker in workers)


class Passing:
    """Matches the piece in which a queue's nth message, counted from now on, goes to the broker."""

    def __init__(self, queue: str, nth: int) -> None:
        # Kombu adds the priority to the queue's name.
        self._push = re.compile(rb"LPUSH\r\n\$\d+\r\n" + re.escape(queue.encode()))
        self._left = nth

    def __call__(self, data: bytes) -> bool:
        self._left -= len(self._push.findall(data))
        return self._left <= 0


@pytest.mark.parametrize(
    "nth", [PUBLISHED_TOGETHER // 2, PUBLISHED_TOGETHER], ids=["in the middle", "at the end"]
)
def test_messages_sent_together_whose_fate_is_unknown_are_all_run_and_none_is_paid_twice(
    proxied, sim, nth
):
    """The broker has a part of them, or all of them, and its reply is lost with the connection.

    Those that are not claimed by the time that is known ring again.
    """
    stack, proxy = proxied
    jobs = 2 * PUBLISHED_TOGETHER
    stack.documents(jobs)
    worker = stack.worker(concurrency=PUBLISHED_TOGETHER)  # one feed is two messages for each slot
    for number in range(1, 4):
        before = pushed(stack)
        failed = worker.output().count("BatchPublishError")
        proxy.lose_reply(Passing("llm.summarize", nth))
        batch = stack.submit("summarize", "--all", "--fresh")
        eventually(lambda number=number: proxy.lost == number, "a reply is lost")
        assert stack.finished(batch)["completed"] == jobs
        settled(stack.broker_url)
        assert sim.stats()["answered"] == number * jobs
        spent = {tuple(row) for row in rows(stack, "attempts", "crashes", batch_id=batch)}
        assert spent == {(1, 0)}
        assert worker.output().count("BatchPublishError") > failed
        note(f"{pushed(stack) - before} messages for {jobs} jobs")
    assert "Traceback" not in worker.output()


def pushed(stack):
    """Messages that the broker has ever taken."""
    with redis.Redis.from_url(stack.broker_url) as client:
        return client.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"]


def test_what_is_no_message_of_ours_stops_nothing_and_is_told_with_its_reason(make_stack, sim):
    """Bodies that are no JSON or no call, a task nobody knows, a document that is none."""
    stack = make_stack(providers=[provider(sim.openai_url)])
    ids = stack.documents(4)
    foreign = Celery("foreign", broker=stack.broker_url, set_as_current=False)
    worker = stack.worker(concurrency=2)
    with foreign.connection_for_write() as connection, connection.channel() as channel:
        for body, content_type in ((b"{ no json", "application/json"), (b"\x80\x04.", "x/y")):
            message = channel.prepare_message(
                body, content_type=content_type, content_encoding="utf-8", headers={}
            )
            channel.basic_publish(message, exchange="", routing_key="llm.summarize")
        with redis.Redis.from_url(stack.broker_url) as client:
            client.lpush("llm.summarize", b"no envelope", b"[1]", b'{"body": 1}')

    def send(name, *args, **kwargs):
        job_id = uuid.uuid4().hex
        foreign.send_task(name, args, kwargs, queue="llm.summarize", task_id=job_id)
        return job_id

    send("nobody.knows_it", 1)
    unbound = send("llmtasks.process_document", "too", "many", "arguments")
    wrong = send("llmtasks.process_document", {"a": 1}, "summarize")
    unknown_type = send("llmtasks.process_document", ids[0], ["summarize"])
    good = send("llmtasks.process_document", ids[0], "summarize")
    batch = stack.submit("summarize", "--all")
    assert stack.finished(batch)["completed"] == 4
    assert stack.finished(good)["completed"] == 1
    for job_id, reason in ((wrong, "DocumentNotFound"), (unknown_type, "UnknownTaskType")):
        assert stack.finished(job_id)["failed"] == 1
        assert stack.job(job_id).error_type == reason
    settled(stack.broker_url)
    assert worker.running
    told = worker.output()
    for reason in ("nobody.knows_it", unbound, "Can't decode message body", "message-unreadable"):
        assert reason in told
    assert "no json" not in told, "what a body holds may be a document"


@pytest.mark.parametrize(("jobs", "concurrency"), [slow(7, 8), full(50, 60)])
def test_a_job_that_kills_its_process_is_told_and_its_neighbours_all_finish(
    make_stack, sim, jobs, concurrency
):
    """Its neighbours lose a worker as often as it does, and are not taken for the poison."""
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        settings={"documents": {"source": "mine:fetch"}, "delivery": {"lease_s": 2.0}},
    )
    (stack.home / "mine.py").write_text(STORE)
    stack.env["PYTHONPATH"] += f":{stack.home}"
    sim.latency(600.0)  # whoever has begun is there when the process dies
    (stack.home / "ids").write_text("".join(f"d{n}\n" for n in range(jobs)))
    batch = stack.submit("summarize", "--ids-from", "ids")
    (stack.home / "ids").write_text("poison\n")
    poison = None
    for crashes in range(3):
        if crashes == 2:  # those on their last chance run one by one
            sim.latency(5.0)
        worker = stack.worker(concurrency=concurrency)
        eventually(
            lambda worker=worker, crashes=crashes: (
                sim.stats()["in_flight"] == jobs or crashes > 0 or not worker.running
            ),
            "its neighbours are at work",
        )
        poison = poison or stack.submit("summarize", "--ids-from", "ids", "--priority", "9")
        eventually(lambda worker=worker: not worker.running, "the poison has killed its process")
    sim.latency(0.1)
    stack.worker(concurrency=concurrency)
    assert stack.finished(batch)["completed"] == jobs
    assert stack.finished(poison)["failed"] == 1
    (row,) = stack.results(poison)
    assert row["error"]["type"] == "WorkerLost"
