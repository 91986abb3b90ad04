"""What anybody who can write to the broker puts there: no code of theirs is run, and no job waits for it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import uuid
from pathlib import Path

import pytest
import redis
import yaml
from support.stack import eventually, provider

from llmtasks.celery_app import TASK_NAME

QUEUE = "llm.summarize"


class Touches:
    """Pickled, it is a command that makes a file where it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def message(body: bytes, content_type: str, task: str = TASK_NAME, **headers) -> bytes:
    """A message as kombu's Redis transport keeps it."""
    job_id = uuid.uuid4().hex
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "binary" if "json" not in content_type else "utf-8",
            "content-type": content_type,
            "headers": {"lang": "py", "task": task, "id": job_id, "root_id": job_id, **headers},
            "properties": {
                "correlation_id": job_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": job_id,
            },
        }
    ).encode()


def loaded_by(loader: str, content: bytes) -> None:
    """What would run, runs where it is loaded carelessly: else this test could not fail."""
    pickle.loads(content) if loader == "pickle" else yaml.unsafe_load(content)


def test_what_is_no_json_message_of_ours_is_run_by_nobody_and_stops_no_other(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)])
    folder = stack.home / "touched"
    folder.mkdir()

    def hostile(name: str) -> tuple[bytes, bytes]:
        args = [Touches(folder / f"{name}.pickle")]
        as_yaml = f"!!python/object/apply:os.system ['touch {folder}/{name}.yaml']"
        return pickle.dumps((args, {}, {})), as_yaml.encode()

    for loader, content in zip(("pickle", "yaml"), hostile("proof"), strict=True):
        loaded_by(loader, content)
        (folder / f"proof.{loader}").unlink()

    pickled, as_yaml = hostile("task")
    good = json.dumps([["d", "summarize"], {}, {}]).encode()
    bodies = [
        message(pickled, "application/x-python-serialize"),
        message(pickled, "application/data"),
        message(pickled, "application/json"),
        message(as_yaml, "application/x-yaml"),
        message(as_yaml, "text/plain"),
        message(good, "application/json", task="os.system"),
        message(b'{"no": "list"}', "application/json"),
        message(b"[[[", "application/json"),
        message(b"7", "application/json"),
        message(b"[]", "application/json"),
        message(good, "application/json", id=None),
        message(good, "application/json", timelimit=7),
    ]
    worker = stack.worker(concurrency=2)
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.lpush(QUEUE, *bodies)
        control_pickle, control_yaml = hostile("control")
        for key in broker.scan_iter("*celery.pidbox"):
            for content, kind in (
                (control_pickle, "application/x-python-serialize"),
                (control_yaml, "application/x-yaml"),
            ):
                broker.publish(
                    f"/0.{key.decode().removeprefix('_kombu.binding.')}", message(content, kind)
                )
        ids = stack.documents(3)
        assert stack.finished(stack.submit("summarize", *ids))["completed"] == 3
        eventually(lambda: broker.llen(QUEUE) == 0, "every message was looked at")
    assert worker.running
    assert "ContentDisallowed" in worker.output()
    assert "message-refused" in worker.output()
    assert list(folder.iterdir()) == []

    # A result that a caller reads is not believed either.
    read = stack.script(
        """
        import json, sys, redis
        from llmtasks.celery_app import app
        backend = app.backend
        backend.client.set(backend.get_key_for_task("forged"), open(sys.argv[1], "rb").read())
        try:
            app.AsyncResult("forged").get(timeout=5)
            print(json.dumps("believed"))
        except Exception as error:
            print(json.dumps(type(error).__name__))
        """,
        str(_file(stack.home / "forged", pickled)),
    )
    assert read != "believed"
    assert list(folder.iterdir()) == []


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("accept", ["accept_content", "result_accept_content"])
def test_tasks_results_events_and_control_are_json_alone(accept):
    from llmtasks.celery_app import app

    assert list(app.conf[accept]) == ["json"]
    for serializer in ("task_serializer", "result_serializer", "event_serializer"):
        assert app.conf[serializer] == "json"
    assert set(app.control.mailbox.accept) == {"json"}
    assert app.control.mailbox.serializer in (None, "json")
