"""Keys, passwords, texts and answers stay where they belong, whatever happens to a job."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy as sa
from support import nasty
from support.echoing import echoing
from support.processes import commands_in, converters_in
from support.stack import Process, eventually, provider
from support.valkey import free_port

from llmtasks.jobs import JobState

TEXT = "marmalade-lighthouse-4711"
ANSWER = "cinnamon-harbour-1147"
SECRETS = {
    "key of the first provider": "sk-planted-first-0123456789",
    "key of the second provider": "sk-ant-planted-second-0123456789",
    "key of the third provider": "sk-planted-third-0123456789",
    "the database's password": "dbpass-0123456789",
    "the broker's password": "brokerpass-0123456789",
    "Flower's password": "flowerpass-0123456789",
    "the metrics' password": "metricspass-0123456789",
    "what the user's functions knew": "hookpass-0123456789",
}
FIRST, SECOND, THIRD, DATABASE, BROKER, FLOWER, METRICS, HOOK = SECRETS.values()

#: Columns that are there for texts and answers.
TEXT_COLUMNS = {"contents.text"}
ANSWER_COLUMNS = {"results.output", "provider_calls.answer"}

#: A user's module whose complaints quote everything.
MINE = f"""
import pathlib
HERE = pathlib.Path(__file__).parent

def fetch(document_id, *, tenant):
    data = (HERE / "store" / document_id).read_bytes()
    with (HERE / "asked").open("a") as out:
        out.write(document_id + "\\n")
    if document_id == "source":
        raise ValueError("{HOOK} " + data.decode())
    return data

def save(row):
    raise RuntimeError(f"{HOOK} {{row}}")
"""
#: A worker whose root logger has everything said that any library has to say.
TALKATIVE = """
import logging
logging.basicConfig(level=logging.DEBUG)
from llmtasks.cli import main
main()
"""
#: What its jobs end in.
ERRORS = {
    "AttemptsExhausted",
    "RequestRejected",
    "ContextWindowExceeded",
    "OutputTruncated",
    "OutputRefused",
    "OutputInvalid",
    "JobCancelled",
}
#: By task: what the provider does with the text. At most four transient failures in a row open no breaker.
CASES = {
    "summarize": (
        "",
        "down",
        "rejected",
        "garbage",
        "window",
        "truncated",
        "refused",
        "invalid",
        "pause",
    ),
    "extract": ("", "hang", "rejected", "down", "window", "truncated", "refused", "pause"),
    "translate": ("broke",),
}


@contextlib.contextmanager
def monitored(url: str, into: Path) -> Iterator[None]:
    """All commands that a server is sent meanwhile, in a file."""
    address = urlsplit(url)
    with (
        socket.create_connection((address.hostname, address.port)) as connection,
        into.open("wb") as out,
    ):
        connection.sendall(f"AUTH {address.password}\r\nMONITOR\r\n".encode())

        def listen() -> None:
            while data := connection.recv(1 << 16):
                out.write(data)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            thread.join()


def with_decoded(text: str) -> str:
    """The text, and what is in it as base64, as the bodies of messages are."""
    found = [text]
    for run in re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text):
        with contextlib.suppress(binascii.Error):
            found.append(base64.b64decode(run + "=" * (-len(run) % 4)).decode(errors="replace"))
    return "\n".join(found)


def tell_of(places: dict[str, str], what: dict[str, str]) -> list[str]:
    """What of these the places tell, and where."""
    return [
        f"{name} in {place}: ...{text[max(0, at - 200) : at + 80]!r}"
        for place, text in places.items()
        for name, secret in what.items()
        if (at := text.find(secret)) >= 0
    ]


def columns(database) -> Iterator[tuple[str, str]]:
    """Every column of every table, with all that is in it."""
    with database.read() as connection:
        for table in sa.inspect(connection).get_table_names():
            rows = connection.execute(sa.text(f'SELECT * FROM "{table}"')).mappings().all()
            for name in rows[0] if rows else ():
                yield f"{table}.{name}", "\n".join(str(row[name]) for row in rows)


def held(url: str) -> Iterator[tuple[str, str]]:
    """Every key of every database of a server, with its value."""
    for number in range(16):
        with redis.Redis.from_url(url, db=number) as client:
            for key in client.scan_iter():
                content = client.dump(key)
                if b":c:" in key:
                    content = zlib.decompress(client.get(key))
                yield f"Valkey {number} {key!r}", f"{key!r} {content!r}"


def get(url: str, password: str) -> str:
    request = urllib.request.Request(url)
    token = base64.b64encode(f"llmtasks:{password}".encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture
def echo():
    with echoing(ANSWER) as provider_:
        yield provider_


@pytest.fixture
def stack(make_stack, echo, own_valkey):
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("rdbcompression", "no")  # so that a DUMP can be read
        client.config_set("requirepass", BROKER)
    stack = make_stack(
        database="postgresql",
        broker=own_valkey,
        providers=[
            provider(echo.openai_url, "first", api_key_env="FIRST_KEY", timeout_s=20),
            provider(
                echo.anthropic_url, "second", "anthropic", api_key_env="SECOND_KEY", timeout_s=1
            ),
            provider(echo.openai_url, "third", api_key_env="THIRD_KEY"),
        ],
        settings={
            "documents": {"source": "mine:fetch"},
            "results": {"sink": "mine:save"},
            "retry": {"max_attempts": 2, "base_s": 0.05},
            "log": {"level": "debug"},
            "metrics": {"password": METRICS},
            "flower": {"password": FLOWER, "port": free_port()},
            "tasks.summarize": {"providers": ["first"]},
            "tasks.extract": {"providers": ["second"]},
            "tasks.translate": {"providers": ["third"]},
        },
    )
    stack.broker_url = own_valkey.url.replace("//", f"//:{BROKER}@")
    database = stack._settings["database"]["url"].replace("postgres@", f"postgres:{DATABASE}@")
    stack.configure(broker={"url": stack.broker_url}, database={"url": database})
    stack.env |= {
        "FIRST_KEY": FIRST,
        "SECOND_KEY": SECOND,
        "THIRD_KEY": THIRD,
        "OPENAI_LOG": "debug",
        "ANTHROPIC_LOG": "debug",
    }
    (stack.home / "mine.py").write_text(MINE)
    (stack.home / "store").mkdir()
    return stack


def store(stack, name: str, case: str = "") -> str:
    """Put a text into the user's store, and say what the provider does with it."""
    text = f"{'case:' + case if case else 'A text'} of {TEXT}, told by {ANSWER}, in {name}."
    data = nasty.pdf([text]) if name.endswith(".pdf") else text.encode()
    (stack.home / "store" / name).write_bytes(data)
    return name


def asked(stack, name: str) -> int:
    path = stack.home / "asked"
    return path.read_text().splitlines().count(name) if path.exists() else 0


def crash_a_worker(stack, echo, victim) -> Process:
    """It is killed with a call in flight; the one that takes over."""
    batch = stack.submit("summarize", store(stack, "crash", "crash"))
    eventually(lambda: echo.held == 1, "the call is in flight")
    victim.kill()
    worker = stack.worker(concurrency=4, launcher=TALKATIVE)
    assert stack.finished(batch)["completed"] == 1
    return worker


def fail_in_every_way(stack) -> dict[str, str]:
    """In batches, and to callers who wait; the batches by task."""
    batches = {
        task: stack.submit(
            task,
            *(store(stack, f"{task}-{case}", case) for case in cases),
            *(["--to", "es"] if task == "translate" else []),
        )
        for task, cases in CASES.items()
    }
    for name in ("direct", "direct-rejected"):
        store(stack, name, name.partition("-")[2])
    store(stack, "source")
    stack.script(
        """
        from celery import group
        from llmtasks import process_document
        asked = group(process_document.s(d, "summarize") for d in ("direct", "direct-rejected", "source"))
        asked.apply_async().get(timeout=60, propagate=False)
        """
    )
    assert {stack.finished(batches[task])["completed"] for task in ("summarize", "extract")} == {2}
    return batches


def crash_a_converter(stack) -> str:
    """It is killed with a text in hand; its environment."""
    assert stack.finished(stack.submit("summarize", store(stack, "page.pdf")))["completed"] == 1
    (converter,) = converters_in(stack.home)
    environment = Path(f"/proc/{converter}/environ").read_bytes().decode(errors="replace")
    os.kill(converter, signal.SIGSTOP)
    torn = stack.submit("summarize", store(stack, "torn.pdf"))
    eventually(lambda: asked(stack, "torn.pdf"), "its text is fetched")
    os.kill(converter, signal.SIGKILL)
    assert stack.finished(torn)["completed"] == 1
    return environment


def wait_then_cancel(stack, unpaid: str) -> dict[str, str]:
    """Jobs that wait, for a pause, a key, and money; what is seen of them meanwhile."""
    parked = stack.submit("summarize", store(stack, "parked", "park"))
    denied = stack.submit("extract", store(stack, "denied", "denied"))
    seen = {}
    for batch in (parked, denied, unpaid):
        eventually(lambda batch=batch: stack.status(batch)["waiting"], "it waits")
        seen[f"status of {batch}"] = json.dumps(stack.status(batch))
    seen |= {f"{where}, early": content for where, content in held(stack.broker_url)}
    for batch in (parked, denied, unpaid):
        stack.inside("cancel", batch)
    return seen


def pages_of_flower(port: int) -> Iterator[tuple[str, str]]:
    tasks = json.loads(get(f"http://127.0.0.1:{port}/api/tasks", FLOWER))
    assert len(tasks) > len(CASES["summarize"])
    pages = ["api/tasks", "tasks", "workers", "api/workers", "broker", "metrics"]
    pages += [f"{page}/{uuid}" for page in ("task", "api/task/info") for uuid in tasks]
    for page in pages:
        yield f"Flower's {page}", get(f"http://127.0.0.1:{port}/{page}", FLOWER)


def told_by_commands(stack, batches: dict[str, str]) -> Iterator[tuple[str, str]]:
    for line in (
        ["status", batches["summarize"]],
        ["status", batches["extract"], "--json"],
        ["watch", batches["summarize"]],
        ["providers"],
        ["providers", "--json"],
        ["doctor"],
        ["doctor", "--json"],
    ):
        done = stack.inside(*line, code=None)
        yield f"llmtasks {line[0]} {line[-1]}", done.stdout + done.stderr


def errors_of(stack, batches: dict[str, str]) -> list[dict[str, str]]:
    rows = [row for batch in batches.values() for row in stack.results(batch)]
    return [row["error"] for row in rows if row["error"]]


def test_no_secret_no_text_and_no_answer_leaves_its_place(stack, echo):
    commands = stack.home / "commands"
    port = stack._settings["flower"]["port"]
    argv = [sys.executable, "-m", "celery", "-A", "workers.app", "flower", "--logging=debug"]
    with monitored(stack.broker_url, commands):
        flower = stack.start(argv, "flower")
        victim = stack.worker(concurrency=4, launcher=TALKATIVE)
        worker = crash_a_worker(stack, echo, victim)
        batches = fail_in_every_way(stack)
        seen = {"a converter's environment": crash_a_converter(stack)}
        seen |= wait_then_cancel(stack, batches["translate"])
        eventually(lambda: "sink-failed" in worker.output(), "the sink has refused")
        seen["metrics"] = get(re.search(r"metrics=(\S+)", worker.output())[1], METRICS)
        seen |= dict(pages_of_flower(port))
        seen["command lines"] = "\n".join(commands_in(stack.home).values())
        seen |= dict(told_by_commands(stack, batches))
        seen |= dict(held(stack.broker_url))
    seen |= {f"the log {one.log.name}": one.output() for one in (victim, worker, flower)}
    seen["errors"] = json.dumps(errors := errors_of(stack, batches))
    assert {error["type"] for error in errors} == ERRORS

    places = {where: with_decoded(text) for where, text in seen.items()}
    sent = {"commands to Valkey": with_decoded(commands.read_text(errors="replace"))}
    stored = {where: with_decoded(text) for where, text in columns(stack.database)}
    meant = {where: stored.pop(where) for where in (*TEXT_COLUMNS & stored.keys(), *ANSWER_COLUMNS)}
    assert tell_of(places | sent | stored | meant, SECRETS) == []
    assert tell_of(places | sent | stored, {"the text": TEXT}) == []
    # Answers are in the cache, too.
    uncached = {where: text for where, text in places.items() if ":c:" not in where}
    assert tell_of(uncached | stored, {"an answer": ANSWER}) == []
    assert JobState.CANCELLED in stored["jobs.state"]
    # What there was to tell would have been found.
    assert all(ANSWER in text for text in meant.values())
    assert "EVALSHA" in sent["commands to Valkey"]
    assert any(ANSWER in text for where, text in places.items() if ":c:" in where)
