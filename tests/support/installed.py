"""The built wheel in an environment of its own, used like a stranger uses it: nothing of the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.stack import Process

#: Seconds that pip may take to build or to install on a busy machine.
PIP_S = 600.0


class Environment:
    """A virtual environment without pip of its own, as in the image."""

    def __init__(self, place: Path) -> None:
        self.bin = place / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)

    def pip(self, *argv: str) -> str:
        """Run the pip of the tests' environment for this one."""
        return pip("--python", str(self.bin / "python"), *argv)

    def install(self, *wanted: str) -> None:
        self.pip("install", "--quiet", *wanted)


def pip(*argv: str) -> str:
    """Run pip; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *argv],
        capture_output=True,
        text=True,
        timeout=PIP_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class User:
    """Somebody with an empty home in an empty directory, who has only this environment."""

    def __init__(self, environment: Environment, place: Path) -> None:
        self.place = place / "work"
        self.place.mkdir(parents=True)
        home = place / "home"
        home.mkdir()
        self.environ = {
            "PATH": f"{environment.bin}:/usr/bin:/bin",
            "HOME": str(home),
            "SIMULATOR_KEY": "sk-simulated",
        }
        self._processes: list[Process] = []

    def run(self, *argv: str, code: int = 0) -> str:
        """Run a command to its end; what it printed, errors included when they are expected."""
        done = subprocess.run(
            argv,
            cwd=self.place,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if code else "")

    def json(self, *argv: str) -> Any:
        """Run an `llmtasks` command with `--json`; what it printed."""
        return json.loads(self.run("llmtasks", *argv, "--json"))

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        lines = self.run("llmtasks", "results", batch_id, "--format", "jsonl").splitlines()
        return [json.loads(line) for line in lines]

    def start(self, *argv: str, **environ: str) -> Process:
        """Start a process; `end` ends it."""
        log = self.place / f"{len(self._processes)}.log"
        process = Process(argv, {**self.environ, **environ}, log, self.place)
        self._processes.append(process)
        return process

    def end(self) -> None:
        for process in reversed(self._processes):
            process.end()
