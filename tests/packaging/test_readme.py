"""The README word by word, as somebody new reads it: every command it shows is typed, every file written.

Left out are what CI runs by itself (`make demo`, `make test`) and what needs a container engine, whose files
`test_containers.py` checks.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.container_files import ROOT
from support.installed import Environment, User
from support.simulated import simulated
from support.stack import eventually
from support.valkey import free_port

from llmtasks.settings import load

pytestmark = pytest.mark.package

README = (ROOT / "README.md").read_text(encoding="utf-8")

#: They stay in the foreground until they are stopped, and have said this when they are ready.
FOREGROUND = {
    "llmtasks up": "llmtasks submit",
    "llmtasks worker --concurrency 32": "worker-ready",
    "llmtasks serve": "serving on",
    "honcho start": "worker-ready",
}
#: No engine is here to ask.
ELSEWHERE = ("docker", "cp .env.example")

TEXTS = {
    "letter.txt": "The harbour office of Bergen hired Anna Holm in May. She begins on Monday.",
    "notes/tides.md": "# Tides\n\nThe spring tide of 1998 damaged the eastern piers of Bergen.",
    "page.html": "<h1>Piers</h1><p>Two piers were repaired by Holm and Sons.</p>",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of the page, under its heading."""

    heading: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def blocks() -> Iterator[Block]:
    heading = ""
    pattern = re.compile(r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for found in pattern.finditer(README):
        if found[1]:
            heading = found[1]
        else:
            yield Block(heading, found[2], found[3])


class Reader(User):
    """Types what stands there, on a terminal, and says yes when asked."""

    def __init__(self, environment: Environment, place: Path) -> None:
        super().__init__(environment, place)
        self.environment = environment
        self.batch = self.job = ""
        self.typed: list[str] = []

    def type(self, line: str) -> str:
        """One line of a block; what the terminal showed."""
        command = shlex.split(line, comments=True)
        bare = shlex.join(command)
        self.typed.append(bare)
        if command[0] == "export":
            name, _, value = command[1].partition("=")
            self.environ[name] = value
            return ""
        if command[:2] == ["pip", "install"]:
            self.environment.install(command[2].replace(".", str(ROOT), 1))
            return ""
        if bare in FOREGROUND:
            process = self.start(*command)
            eventually(
                lambda: FOREGROUND[bare] in process.output() or not process.running,
                f"{bare} is ready",
            )
            assert process.running, process.output()
            return process.output()
        if command[0] == "curl":
            return self._asked(command)
        screen = self._on_terminal([self.batch if word == "BATCH" else word for word in command])
        if found := re.search(r"\b[0-9a-f]{32}\b", screen):
            self.batch = found[0]
        return screen

    def _asked(self, command: list[str]) -> str:
        """What a server answers, at its port here."""
        port = f"localhost:{self.environ['LLMTASKS_API__PORT']}"
        known = {"localhost:8000": port, "/JOB/": f"/{self.job}/", "/BATCH/": f"/{self.batch}/"}
        for word, meant in known.items():
            command = [one.replace(word, meant) for one in command]
        screen = self._on_terminal(["curl", "--silent", *command[1:]])
        assert '"error": {' not in screen.replace('"error":{', '"error": {'), screen
        if found := re.search(r'"job_id":"([^"]+)"', screen):
            self.job = found[1]
        return screen

    def _on_terminal(self, argv: list[str]) -> str:
        ours, its = pty.openpty()
        process = subprocess.Popen(
            argv, cwd=self.place, env=self.environ, stdin=its, stdout=its, stderr=its
        )
        os.close(its)
        os.set_blocking(ours, False)
        screen, answered, deadline = "", 0, time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            screen += _read(ours)
            if screen.count("Go on?") > answered:
                answered += 1
                os.write(ours, b"y\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        if process.poll() is None:
            process.kill()
        process.wait()
        screen += _read(ours)
        os.close(ours)
        assert process.returncode == 0, f"{argv}: {process.returncode}\n{screen}"
        return screen


def _read(terminal: int) -> str:
    text = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 65_536):
            text += chunk
    return text.decode(errors="replace")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with simulated() as provider:
        reader = Reader(Environment(tmp_path / "venv"), tmp_path)
        # Instead of the vendors' own addresses. Ports are picked free, for tests beside this one.
        reader.environ |= {
            "OPENAI_BASE_URL": provider.openai_url,
            "ANTHROPIC_API_KEY": "sk-simulated",
            "LLMTASKS_METRICS__PORT": str(free_port()),
            "LLMTASKS_API__PORT": str(free_port()),
            "LLMTASKS_FLOWER__PORT": str(free_port()),
            "PATH": f"{reader.environ['PATH']}:{Path(sys.executable).parent}",  # honcho
        }
        for name, text in TEXTS.items():
            path = reader.place / "docs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        shutil.copy(ROOT / "Procfile", reader.place)
        yield reader
        reader.end()


def test_every_command_of_the_page_works_when_it_is_pasted(reader):
    provider = reader.environ["OPENAI_BASE_URL"]
    for block in blocks():
        match block.language, block.heading:
            case "sh", "Run it for real":
                reader.end()  # `up` is stopped before workers are started by hand
                _typed(reader, block)
            case "sh", _:
                _typed(reader, block)
            case "toml", "Your own keys":
                (reader.place / "llmtasks.toml").write_text(block.text)
                reader.environ |= {
                    "LLMTASKS_PROVIDERS__OPENAI__BASE_URL": provider,
                    "LLMTASKS_PROVIDERS__ANTHROPIC__BASE_URL": provider.removesuffix("/v1"),
                }
            case "toml", _:
                (reader.place / "another.toml").write_text(block.text)
                load({"LLMTASKS_CONFIG": str(reader.place / "another.toml")}, reader.place)
            case "python", _:
                (reader.place / "program.py").write_text(block.text)
                printed = reader.run("python", "program.py")
                assert "completed" in printed
            case (("" | "text"), _):
                pass  # pictures, and what CI runs by itself
            case _:
                pytest.fail(f"a block of {block.language!r} that nobody tries: {block.text[:60]}")
    assert {"llmtasks up", "llmtasks doctor", "llmtasks migrate"} <= set(reader.typed)
    spanish = [
        json.loads(line) for line in (reader.place / "spanish.jsonl").read_text().splitlines()
    ]
    assert {row["state"] for row in spanish} == {"completed"}
    assert {row["document_id"] for row in spanish} == TEXTS.keys()


def _typed(reader: Reader, block: Block) -> None:
    for line in block.commands:
        if not line.startswith(ELSEWHERE):
            reader.type(line)


def test_the_page_shows_make_targets_that_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert shown
    assert set(shown) <= set(targets)


def test_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
