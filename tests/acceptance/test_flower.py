"""What Flower shows of jobs: how each stands, why it waits, and nothing that is not its own."""

from __future__ import annotations

import base64
import json
import sys
import urllib.request

import pytest
from support.stack import eventually, provider
from support.valkey import free_port

LONG = "marmalade lighthouse " * 5


@pytest.fixture
def stack(make_stack, sim):
    port = free_port()
    return make_stack(
        providers=[provider(sim.openai_url)],
        settings={"flower": {"password": "open-sesame", "port": port}},
    )


class Flower:
    """A real one, asked over HTTP."""

    def __init__(self, stack) -> None:
        argv = [sys.executable, "-m", "celery", "-A", "workers.app", "flower"]
        self.process = stack.start(argv, "flower")
        self.url = f"http://127.0.0.1:{stack._settings['flower']['port']}"
        eventually(self._answers, lambda: f"Flower answers: {self.process.output()}")

    def get(self, path: str) -> str:
        request = urllib.request.Request(self.url + path)
        token = base64.b64encode(b"llmtasks:open-sesame").decode()
        request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def task(self, job_id: str) -> dict:
        return json.loads(self.get("/api/tasks")).get(job_id, {})

    def shows(self, job_id: str, state: str) -> dict:
        def found() -> dict | None:
            task = self.task(job_id)
            return task if task.get("state") == state else None

        return eventually(found, lambda: f"{job_id} is {state}, not {self.task(job_id)}")

    def _answers(self) -> bool:
        try:
            return bool(self.get("/tasks"))
        except OSError:
            return False


def send(stack, job_id: str, document: str = "d", **options) -> None:
    stack.script(
        f"""
        from llmtasks import add_document, process_document
        if {document!r} == "d":
            add_document({LONG!r}, "d")
        process_document.apply_async(({document!r}, "translate"), {options!r}, task_id={job_id!r})
        """
    )


def test_flower_shows_how_each_job_stands_and_shows_no_options_that_may_be_texts(stack, sim):
    flower = Flower(stack)
    worker = stack.worker(concurrency=2)
    options = {"target_language": "es", "tenant": "default", "priority": 3}
    send(stack, "done", **options)
    done = flower.shows("done", "SUCCESS")
    assert done["args"] == "('d', 'translate')"
    assert done["kwargs"] == "{'target_language': 'es', 'priority': 3}"
    assert done["result"].startswith("model-sim: ")
    assert done["result"].endswith(" tokens, $?")

    assert "answered" not in done["result"]

    send(stack, "missing", "nowhere", target_language="es")
    assert "DocumentNotFound" in flower.shows("missing", "FAILURE")["exception"]

    sim.faults(kind="429", next=1, retry_after=60)
    send(stack, "parked", target_language="fr")
    assert flower.shows("parked", "RETRY")["exception"].startswith("RateLimitError(")
    stack.inside("cancel", "parked")
    flower.shows("parked", "REVOKED")

    page = flower.get("/tasks")
    assert all(
        f'data-column="{name}"' in page for name in ("args", "kwargs", "result", "exception")
    )
    assert LONG not in flower.get("/api/tasks")
    assert worker.running


def test_flower_shows_how_far_a_job_is_and_afterwards_only_what_it_gave(stack, sim):
    flower = Flower(stack)
    stack.worker(concurrency=2)
    sim.faults(kind="length", next=1)
    sim.latency(2.0)
    send(stack, "long", target_language="es")
    far = flower.shows("long", "PROGRESS")
    assert far["result"] == "translate: answer cut, asking once more with more room"
    assert flower.shows("long", "SUCCESS")["result"].startswith("model-sim: ")
