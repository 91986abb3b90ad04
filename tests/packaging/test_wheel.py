"""The wheel alone, in an empty environment, an empty home and an empty directory: what a user installs."""

from __future__ import annotations

import functools
import json
import re
import socket
import subprocess
import sys
import tarfile
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import pytest
from support import container_files
from support.container_files import ROOT, deployment
from support.installed import Environment, User, pip
from support.stack import Process, eventually
from support.valkey import free_port

import llmtasks

pytestmark = pytest.mark.package

EXAMPLE = ROOT / "docs/examples/classify"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LETTER = "The harbour office of Bergen hired Anna Holm in May. She begins on Monday."


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as the Dockerfile builds it, from exactly the files that it copies."""
    context = container_files.build_context(tmp_path_factory.mktemp("context"))
    target = tmp_path_factory.mktemp("wheels")
    tool, *argv = container_files.run_words("pip wheel")
    assert tool == "pip"
    assert argv[-1] == "."
    pip(*(str(target) if word == "/wheels" else word for word in argv[:-1]), str(context))
    (built,) = target.glob("llmtasks-*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with no extra."""
    environment = Environment(tmp_path_factory.mktemp("bare") / "venv")
    environment.install(str(wheel))
    return environment


@pytest.fixture(scope="module")
def without_extras(bare: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands say before any extra is there."""
    user = User(bare, tmp_path_factory.mktemp("without"))
    said = {
        "help": user.run("llmtasks", "--help"),
        "version": user.run("llmtasks", "--version"),
        "import": user.run("python", "-c", "import llmtasks; print(llmtasks.__file__)"),
        "check": bare.pip("check"),
    }
    _configure(user, "http://127.0.0.1:9/v1")
    return said | {"worker": user.run("llmtasks", "worker", code=2)}


@pytest.fixture(scope="module")
def user(
    bare: Environment,
    wheel: Path,
    without_extras: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[User]:
    """Somebody with the wheel, its `embedded` extra, and the example's package."""
    assert without_extras
    bare.install(f"{wheel}[embedded]", str(EXAMPLE))
    user = User(bare, tmp_path_factory.mktemp("user"))
    yield user
    user.end()


@pytest.fixture(scope="module")
def simulator(user: User) -> str:
    """A simulated provider from the wheel, which the user's configuration names; its address."""
    process = user.start("llmtasks", "simulator", "--port", "0", "--json")
    line = eventually(lambda: process.output().partition("\n")[0], "the simulator's address")
    address = json.loads(line)
    _configure(user, address["openai_base_url"])
    url: str = address["url"]
    return url


def _configure(user: User, base_url: str) -> None:
    (user.place / "llmtasks.toml").write_text(
        f"""
        [metrics]
        port = {free_port()}
        [[providers]]
        name = "sim"
        kind = "openai"
        model = "simulated"
        base_url = "{base_url}"
        api_key_env = "SIMULATOR_KEY"
        """
    )


def _worker(user: User, **environ: str) -> Process:
    worker = user.start("llmtasks", "worker", "--concurrency", "4", **environ)
    eventually(lambda: "worker-ready" in worker.output() or not worker.running, "a worker")
    assert worker.running, worker.output()
    return worker


def _submitted(user: User, task: str, *options: str) -> dict:
    """Submit a task over all documents and wait; the one job's line of results."""
    batch = user.json("submit", task, "--all", *options)["batch_id"]
    eventually(lambda: user.json("status", batch)["state"] != "running", f"{task} has ended")
    (line,) = user.results(batch)
    return line


def _asked(simulator: str) -> list[dict]:
    """The questions that the provider answered, in their order."""
    with urllib.request.urlopen(f"{simulator}/_sim/log", timeout=30) as answer:
        return [json.loads(line) for line in answer]


# --- what is in them -----------------------------------------------------------------------------


def test_the_wheel_holds_what_runs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = {
        str(path.relative_to(ROOT)).replace("migrations/", "llmtasks/_migrations/", 1)
        for folder in ("llmtasks", "workers", "migrations")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == tracked
    assert "llmtasks/_migrations/versions/0001_initial.py" in names
    assert "llmtasks/task_types/summarize.prompt.md" in names
    assert "llmtasks/py.typed" in names


def test_its_metadata_names_the_version_the_extras_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
        names = archive.namelist()
    assert metadata["Version"] == llmtasks.__version__
    assert set(metadata.get_all("Provides-Extra")) == PROJECT["optional-dependencies"].keys()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(one.endswith("licenses/LICENSE") for one in names)


def test_the_source_distribution_builds_the_same_wheel(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
    )
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "Makefile", "docs/design.md", "tests/conftest.py"} <= names
    assert {
        "docker-compose.yml",
        "deploy/llmtasks.toml",
        "docs/examples/classify/README.md",
    } <= names
    assert not {".env", "llmtasks.toml"} & names
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source))
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(tmp_path / wheel.name) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


# --- without any extra ---------------------------------------------------------------------------


def test_it_says_its_version_and_its_verbs_without_any_extra(without_extras, bare):
    assert without_extras["version"] == f"llmtasks, version {llmtasks.__version__}\n"
    assert "submit" in without_extras["help"]
    assert without_extras["import"].startswith(str(bare.bin.parent))
    assert without_extras["check"].strip() == "No broken requirements found."


def test_what_is_missing_is_named_with_its_extra(without_extras):
    line = without_extras["worker"].strip()
    assert re.fullmatch(r"llmtasks: broker\.url: .*llmtasks\[embedded\].*", line)


# --- the way of a document -----------------------------------------------------------------------


def test_a_document_is_summarized_and_classified_and_asked_in_own_words(user, simulator):
    worker = _worker(user)
    (user.place / "letter.txt").write_text(LETTER)
    assert user.json("documents", "add", "letter.txt")[0]["status"] == "added"

    line = _submitted(user, "summarize")
    assert (line["state"], line["document_id"]) == ("completed", "letter.txt")
    assert line["output"].startswith("The harbour office of Bergen hired Anna Holm in May.")

    assert "pong" in user.run("celery", "-A", "workers.app", "inspect", "ping")

    sorted_under = _submitted(user, "classify", "-o", "labels=invoice,letter")
    assert sorted_under["state"] == "completed", sorted_under
    assert sorted_under["output"]["label"] in ("invoice", "letter")
    assert sorted_under["output"].keys() == {"label", "confidence"}
    refused = user.run("llmtasks", "submit", "classify", "--all", "-o", "labels=one", code=2)
    assert refused.strip() == "llmtasks: classify: labels: expected 2 to 50 of them"

    assert worker.terminate() == 0, worker.output()

    # The same question in the words of docs/examples/prompts is another question.
    before = _asked(simulator)
    worker = _worker(user, LLMTASKS_PROMPTS__DIR=str(ROOT / "docs/examples/prompts"))
    own = _submitted(user, "summarize")
    assert own["state"] == "completed"
    assert not own["cached"]
    (asked,) = _asked(simulator)[len(before) :]
    assert asked["prompt_sha256"] not in {one["prompt_sha256"] for one in before}
    assert worker.terminate() == 0, worker.output()


def test_everything_in_one_command(user, simulator):
    assert simulator
    (user.place / "second.txt").write_text(f"A second letter. {LETTER}")
    user.run("llmtasks", "run", "summarize", "second.txt", "--out", "summaries.jsonl")
    (line,) = map(json.loads, (user.place / "summaries.jsonl").read_text().splitlines())
    assert (line["document_id"], line["state"]) == ("second.txt", "completed")


def test_celery_and_the_migrations_are_found(user, simulator):
    assert simulator
    assert "kombu:5.7" in user.run("celery", "-A", "workers.app", "report")
    database = f"sqlite:///{user.place / 'own.sqlite3'}"
    user.environ["LLMTASKS_DATABASE__URL"] = database
    try:
        assert user.json("migrate")["from"] is None
        assert user.json("migrate")["from"] is not None
    finally:
        del user.environ["LLMTASKS_DATABASE__URL"]


# --- what the containers ask of it ---------------------------------------------------------------


def _healthy(user: User, test: list[str], port: int) -> bool:
    """Run a health check of docker-compose.yml against another port."""
    assert test[0] == "CMD"
    words = [re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", word) for word in test[1:]]
    done = subprocess.run(words, env=user.environ, cwd=user.place, capture_output=True, check=False)
    return done.returncode == 0


def test_the_health_checks_see_a_worker_and_flower_come_and_go(user, simulator, tmp_path):
    assert simulator
    services = container_files.services(deployment(tmp_path))
    flower, worker = free_port(), free_port()
    environ = {
        name: value
        for name, value in services["flower"]["environment"].items()
        if name.startswith("LLMTASKS_FLOWER")
    } | {"LLMTASKS_FLOWER__PORT": str(flower), "LLMTASKS_METRICS__PORT": str(worker)}
    ports = {"worker": worker, "flower": flower}
    running = {
        "worker": _worker(user, **environ),
        "flower": user.start(*services["flower"]["entrypoint"], **environ),
    }
    for name, process in running.items():
        healthy = functools.partial(
            _healthy, user, services[name]["healthcheck"]["test"], ports[name]
        )
        eventually(healthy, f"{name} is healthy: {process.output()}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{flower}/workers", timeout=10)
    for name in ("flower", "worker"):
        assert running[name].terminate() == 0, running[name].output()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", ports[name])) != 0
        assert not _healthy(user, services[name]["healthcheck"]["test"], ports[name])


def test_the_examples_own_tests_pass():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{EXAMPLE}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
