"""What a worker's log says of its jobs: one line for each end, from the submit to the provider's request."""

from __future__ import annotations

import json
import re
import sys

import pytest
from support.stack import eventually, provider

TEXT = "marmalade-lighthouse-4711"
KEY = "sk-simulated-0123456789"

#: A producer that has its library's lines written.
PRODUCER = f"""
import json, logging, sys
from llmtasks import add_document, process_document
add_document({TEXT!r}, "d\\nn=1")
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
process_document.apply_async(("d\\nn=1", "summarize"), task_id="followed")
process_document.apply_async(("missing", "summarize"), task_id="lost")
"""

#: What the line of a completed job has; a price is known of the vendors' own models alone.
COMPLETED = {
    "job",
    "document",
    "task",
    "state",
    "attempts",
    "calls",
    "provider",
    "model",
    "requests",
    "input_tokens",
    "output_tokens",
    "queued_s",
    "running_s",
    "cached",
}
HEAD = {"timestamp", "level", "logger", "event"}


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)])


def test_a_job_is_followed_from_its_submit_to_the_providers_request_in_json(stack):
    stack.configure(log={"level": "debug", "format": "json"})
    (stack.home / "producer.py").write_text(PRODUCER)
    producer = stack.start([sys.executable, "producer.py"], "producer")
    assert producer.wait() == 0, producer.output()
    submitted = [line for line in producer.output().splitlines() if "job-submitted" in line]
    assert len(submitted) == 2
    assert submitted[0].startswith("llmtasks.client job-submitted job=followed")

    worker = stack.worker(concurrency=2)
    ends = ("job-completed", "job-failed")
    eventually(lambda: all(end in worker.output() for end in ends), "both have ended")
    worker.terminate()
    lines = [json.loads(line) for line in worker.output().splitlines()]
    assert all(line.keys() >= HEAD for line in lines)

    followed = [line for line in lines if line.get("job") == "followed"]
    (call,) = [line for line in followed if line["event"] == "call-ended"]
    (end,) = [line for line in followed if line["event"] == "job-completed"]
    assert end.keys() == COMPLETED | HEAD
    assert end["document"] == "d\nn=1"
    assert end["requests"] == [call["request"]]
    assert (end["provider"], end["model"]) == ("sim", "model-sim")
    assert (end["calls"], end["state"]) == (1, "completed")
    assert end["queued_s"] > 0
    assert end["input_tokens"] == call["input_tokens"] > 0
    celery = [line["text"] for line in followed if line["logger"].startswith("celery")]
    assert any("received" in text for text in celery)
    assert any("succeeded" in text for text in celery)

    (failed,) = [line for line in lines if line["event"] == "job-failed"]
    assert (failed["job"], failed["error"], failed["level"]) == (
        "lost",
        "DocumentNotFound",
        "warning",
    )
    assert TEXT not in worker.output()
    assert KEY not in worker.output()


def test_a_worker_writes_one_line_for_each_end_of_a_job_and_a_command_none(stack):
    worker = stack.worker(concurrency=4)
    stack.documents(12)
    submitted = stack.cli("submit", "summarize", "--all", "--json")
    assert submitted.stderr == ""
    stack.finished(json.loads(submitted.stdout)["batch_id"])
    eventually(lambda: worker.output().count("job-completed") == 12, "each has its line")
    worker.terminate()
    said = worker.output().partition("\nworker: Warm shutdown")[
        0
    ]  # Celery's word to who pressed Ctrl-C
    for line in said.splitlines():
        assert re.match(r"\S+ \S+ (INFO|WARNING) llmtasks\.\w+ [a-z-]+( |$)", line), line
        assert "call-ended" not in line
    assert worker.output().count("cost_usd") == 0  # unknown is not nothing
