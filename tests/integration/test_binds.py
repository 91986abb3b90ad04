"""Who is listened to: this machine alone, unless told otherwise, and then with a password."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.processes import commands_in
from support.stack import ROOT, Stack, provider

from llmtasks import metrics, settings

LOGIN = ("ops", "open-sesame")


def answer(url: str, login: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url)
    if login is not None:
        request.add_header("Authorization", login)
    try:
        with urllib.request.urlopen(request, timeout=10) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


@pytest.fixture
def guarded():
    with contextlib.closing(metrics.serve("0.0.0.0", 0, LOGIN)) as exporter:
        yield exporter.url.replace("0.0.0.0", "127.0.0.1")


def test_metrics_beyond_loopback_are_for_whoever_knows_the_password(guarded):
    status, text = answer(guarded, basic("ops:open-sesame"))
    assert status == 200
    assert "llm_cache_hits_total" in text
    wrong = [
        None,
        "",
        "Basic",
        "Basic !",
        "Basic \u00e9",
        "Bearer open-sesame",
        basic("ops:open-sesam"),
    ]
    wrong += [
        basic("ops:"),
        basic(":open-sesame"),
        basic("open-sesame"),
    ]
    for login in wrong:
        assert answer(guarded, login) == (401, ""), login
        assert answer(guarded.replace("/metrics", "/"), login) == (401, ""), login


def test_that_a_worker_is_well_is_told_to_anybody_and_nothing_else(guarded):
    assert answer(guarded.replace("/metrics", "/healthcheck")) == (200, "OK")
    assert answer(guarded.replace("/metrics", "/healthcheck/"))[0] == 401


def test_metrics_listen_on_loopback_alone_unless_told_otherwise():
    with contextlib.closing(metrics.serve(settings.Metrics().host, 0)) as exporter:
        port = int(exporter.url.rsplit(":", 1)[1].removesuffix("/metrics"))
        assert listening(port) == {"127.0.0.1"}
        assert answer(exporter.url)[0] == 200


def listening(port: int) -> set[str]:
    """The addresses on which somebody listens at this port, as the kernel says."""
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, _, number = line.split()[1].partition(":")
            if int(number, 16) == port and line.split()[3] == "0A":
                found.add(socket.inet_ntop(family, _in_order(bytes.fromhex(address))))
    return found


def _in_order(address: bytes) -> bytes:
    words = [address[at : at + 4] for at in range(0, len(address), 4)]
    return b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)


def test_the_simulator_listens_on_loopback_alone_unless_told_otherwise(sim):
    port = int(sim.url.rsplit(":", 1)[1])
    assert listening(port) == {"127.0.0.1"}


def test_the_embedded_server_listens_on_no_port(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)], embedded=True)
    stack.worker(concurrency=1)
    servers = [pid for pid, command in commands_in(stack.home).items() if "valkey" in command]
    assert servers
    for pid in servers:
        assert ports_of(pid) == set()


def ports_of(pid: int) -> set[str]:
    """The inodes of the TCP sockets of a process on which it listens."""
    mine = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(str(descriptor.readlink()))
    listening_now = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                listening_now.add(f"socket:[{words[9]}]")
    return mine & listening_now


@pytest.mark.parametrize(
    ("argv", "variables"),
    [
        ([], {"FLOWER_ADDRESS": "0.0.0.0"}),
        (["--address=0.0.0.0"], {}),
        (["--address=::", "--port=0"], {"FLOWER_BASIC_AUTH": ""}),
    ],
)
def test_flower_is_not_opened_to_everybody_by_its_own_options(tmp_path, argv, variables):
    stack = Stack(
        tmp_path / "s", broker_url="redis://127.0.0.1:1/0", database_url=None, providers=[]
    )
    done = subprocess.run(
        [sys.executable, "-c", "import workers.app", "flower", *argv],
        env={**stack.env, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "flower.password: is required" in done.stderr
