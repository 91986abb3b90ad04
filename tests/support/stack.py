"""A whole installation for one test: broker, database, simulated providers, worker processes, commands.

Everything is real and its own: a Valkey on a socket of its own, a database of its own, workers as processes
that are ended by their pid. Programs of a user run as processes too, so that nothing is shared by accident.
Commands do where a test is about them (`cli`, `json`); those that only prepare or look run inside the test's
process (`inside`), which saves the second that an interpreter and its imports take.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
import redis
import sqlalchemy as sa
from support import forkserver

from llmtasks import settings as configuration
from llmtasks.cli import main
from llmtasks.cli.output import status_json
from llmtasks.jobs import Job
from llmtasks.store import batches, jobs
from llmtasks.store import process as own_process
from llmtasks.store.engine import SQLITE_FILE, Database, open_database
from llmtasks.store.tables import provider_calls

ROOT = Path(__file__).parents[2]

#: Seconds that any condition of a test may take on a busy machine before the test gives up.
PATIENCE_S = 90.0

T = TypeVar("T")


def is_own(variable: str) -> bool:
    """Whether a variable of the developer's would configure what a test starts."""
    return variable.startswith("LLMTASKS_") or variable.endswith(("_API_KEY", "_BASE_URL"))


def eventually(
    condition: Callable[[], T], what: str | Callable[[], str], timeout: float = PATIENCE_S
) -> T:
    """Wait until the condition holds; its value. `what` may be made when it is needed: at the end."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {timeout:.0f} s: {told}")
        time.sleep(0.05)


class Process:
    """A started process with its output in a file; ended by its pid."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self._popen = forkserver.start(argv, env=env, cwd=cwd, stdout=file, stderr=file)
        self.pid = self._popen.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, sig: signal.Signals) -> None:
        self._popen.send_signal(sig)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def wait(self, timeout: float = PATIENCE_S) -> int:
        return self._popen.wait(timeout)

    def terminate(self, timeout: float = PATIENCE_S) -> int:
        self._popen.terminate()
        return self.wait(timeout)

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def end(self) -> None:
        """Whatever state it is in."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(signal.SIGCONT)
            self._popen.terminate()
            try:
                self._popen.wait(5.0)
            except subprocess.TimeoutExpired:
                self.kill()


class Stack:
    """Configuration, environment and processes of one installation."""

    def __init__(
        self,
        home: Path,
        *,
        broker_url: str | None,
        database_url: str | None,
        providers: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.home = home
        self.home.mkdir(parents=True, exist_ok=True)
        self.broker_url = broker_url
        self._settings = {
            "local": {"data_dir": str(home / "data")},
            "metrics": {"port": 0},
            # Tests kill workers and wait for the takeover.
            "delivery": {"lease_s": 3.0, "resend_after_s": 2.0},
            **({"broker": {"url": broker_url}} if broker_url else {}),
            **({"database": {"url": database_url}} if database_url else {}),
        }
        for section, values in (settings or {}).items():
            self._settings[section] = {**self._settings.get(section, {}), **values}
        self._providers = list(providers)
        self._processes: list[Process] = []
        self._numbers = itertools.count()  # of what is started, also by several threads at once
        #: What a test starts beside, ended whatever becomes of the test.
        self.ending = contextlib.ExitStack()
        self.config = home / "llmtasks.toml"
        self.config.write_text(_toml(self._settings, self._providers))
        self.env = {
            **{k: v for k, v in os.environ.items() if not is_own(k)},
            "LLMTASKS_CONFIG": str(self.config),
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "SIMULATOR_KEY": "sk-simulated-0123456789",
        }

    def give_database(self, migrated: Path) -> None:
        """Put a migrated SQLite file where the first process would make one, which takes it longer."""
        data = self.home / "data"
        data.mkdir(mode=0o700)
        shutil.copy(migrated, data / SQLITE_FILE)

    def configure(self, **sections: Mapping[str, Any]) -> None:
        """Change settings for processes started from now on."""
        for section, values in sections.items():
            self._settings[section] = {**self._settings.get(section, {}), **values}
        self.config.write_text(_toml(self._settings, self._providers))

    def worker(
        self, *, concurrency: int = 8, queues: str | None = None, launcher: str | None = None
    ) -> Process:
        """Start `llmtasks worker` and wait until it takes jobs; a launcher is Python that calls `main`."""
        python = [sys.executable, *(("-c", launcher) if launcher else ("-m", "llmtasks"))]
        argv = [*python, "worker", "--concurrency", str(concurrency)]
        process = self.start([*argv, *(["--queues", queues] if queues else [])], "worker")
        eventually(
            lambda: "worker-ready" in process.output() or not process.running,
            "the worker is ready",
        )
        assert process.running, process.output()
        return process

    def start(self, argv: Sequence[str], name: str) -> Process:
        log = self.home / f"{name}-{next(self._numbers)}.log"
        process = Process(argv, self.env, log, self.home)
        self._processes.append(process)
        return process

    def freeze(self, process: Process) -> None:
        """SIGSTOP, but not in the middle of a transaction: SQLite's only writer would stop with it."""
        with self.database.write():
            process.signal(signal.SIGSTOP)

    def cli(
        self, *argv: str, code: int | None = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `llmtasks ARGV` to its end, expecting an exit code."""
        done = forkserver.run(
            [sys.executable, "-m", "llmtasks", *argv],
            env=self.env,
            cwd=self.home,
            stdin=stdin,
            timeout=PATIENCE_S,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def inside(self, *argv: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """`cli` in the test's own process, which need not start."""
        stdout, stderr = (
            io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)
        )
        with contextlib.ExitStack() as there:
            there.enter_context(mock.patch.dict(os.environ, self.env, clear=True))
            there.enter_context(mock.patch.object(sys, "argv", ["llmtasks", *argv]))
            there.enter_context(contextlib.chdir(self.home))
            there.enter_context(contextlib.redirect_stdout(stdout))
            there.enter_context(contextlib.redirect_stderr(stderr))
            _forget_configuration()
            there.callback(_forget_configuration)
            with pytest.raises(SystemExit) as ended:
                main()
        printed, complained = (text.buffer.getvalue().decode() for text in (stdout, stderr))
        assert code is None or ended.value.code == code, printed + complained
        return subprocess.CompletedProcess(argv, ended.value.code, printed, complained)

    def json(self, *argv: str, code: int | None = 0, inside: bool = False) -> Any:
        """Run a command with `--json`; what it printed."""
        run = self.inside if inside else self.cli
        return json.loads(run(*argv, "--json", code=code).stdout)

    def script(self, source: str, *argv: str) -> Any:
        """Run a user's program; the JSON it printed last, None when it printed nothing."""
        done = forkserver.run(
            [sys.executable, "-c", textwrap.dedent(source), *argv],
            env=self.env,
            cwd=self.home,
            timeout=2 * PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    def talk(self, source: str) -> Callable[[str], str]:
        """Start a user's program that answers each line with a line; how to ask it."""
        program = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source)],
            env=self.env,
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ending.callback(program.__exit__, None, None, None)
        self.ending.callback(program.kill)

        def ask(line: str) -> str:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(f"{line}\n")
            program.stdin.flush()
            return program.stdout.readline()

        return ask

    def documents(self, count: int, *, words: int = 40) -> list[str]:
        """Store `count` different short documents; their ids."""
        folder = self.home / "documents"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            name = f"doc-{number:05}"
            body = f"Report {name} of the harbour office. " + f"Item {number} was counted. " * (
                words // 5
            )
            (folder / f"{name}.txt").write_text(body)
        added = self.json("documents", "add", str(folder), inside=True)
        assert {line["status"] for line in added} <= {"added", "exists"}, added[:3]
        return [line["document_id"] for line in added]

    def submit(self, task: str, *argv: str) -> str:
        """Submit a batch; its id."""
        batch_id: str = self.json("submit", task, *argv, inside=True)["batch_id"]
        return batch_id

    @functools.cached_property
    def database(self) -> Database:
        """The installation's database, opened by the test: cheaper to ask often than a command."""
        return open_database(configuration.load(self.env, self.home))

    def status(self, batch_id: str) -> dict[str, Any]:
        """What `llmtasks status --json` prints."""
        found = batches.status(self.database, batch_id)
        assert found is not None, batch_id
        return status_json(found)

    def finished(self, batch_id: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until every job of the batch has ended; its status."""

        def ended() -> dict[str, Any] | None:
            status = self.status(batch_id)
            return None if status["state"] == "running" else status

        return eventually(ended, lambda: f"it has ended: {self.status(batch_id)}", timeout)

    def job(self, job_id: str) -> Job:
        """A job as its row says."""
        found = jobs.get(self.database, job_id)
        assert found is not None, job_id
        return found

    def calls(self, job_id: str) -> list[Any]:
        """The rows of the calls that a job paid for, or may have."""
        with self.database.read() as connection:
            return list(
                connection.execute(
                    sa.select(provider_calls).where(provider_calls.c.job_id == job_id)
                )
            )

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """What `llmtasks results --format jsonl` prints."""
        done = self.inside("results", batch_id, "--format", "jsonl", code=None)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def messages(self) -> str:
        """All that the broker's server holds, as text: messages, results, limits (and cached answers not)."""
        assert self.broker_url is not None
        with redis.Redis.from_url(self.broker_url) as client:
            return "".join(
                str(_content(client, key)) for key in client.scan_iter() if b":c:" not in key
            )

    def close(self) -> None:
        self.ending.close()
        for process in self._processes:
            process.end()
        if "database" in vars(self):
            self.database.close()


def _forget_configuration() -> None:
    """What a process remembers of the installation it works in."""
    own_process._close()
    own_process.database.cache_clear()
    configuration.current.cache_clear()
    configuration.current_origin.cache_clear()


def _content(client: redis.Redis, key: bytes) -> object:
    match client.type(key):
        case b"string":
            return client.get(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"hash":
            return client.hgetall(key)
        case b"zset":
            return client.zrange(key, 0, -1)
        case b"set":
            return client.smembers(key)
    return client.dump(key)


def provider(url: str, name: str = "sim", kind: str = "openai", **values: Any) -> dict[str, Any]:
    """A `[[providers]]` entry for a simulated provider."""
    return {
        "name": name,
        "kind": kind,
        "model": f"model-{name}",
        "base_url": url,
        "api_key_env": "SIMULATOR_KEY",
        **values,
    }


def _toml(settings: Mapping[str, Mapping[str, Any]], providers: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for section, values in settings.items():
        lines += [f"[{section}]", *_pairs(values), ""]
    for entry in providers:
        lines += ["[[providers]]", *_pairs(entry), ""]
    return "\n".join(lines)


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    # JSON's scalars and lists are TOML's.
    return (f"{key} = {json.dumps(value)}" for key, value in values.items())
