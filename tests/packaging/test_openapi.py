"""A server against its own description: schemathesis asks what /openapi.json allows, and what it does not."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.served import Served, serve
from support.simulated import simulated
from support.stack import Stack, provider
from support.valkey import RestartableValkey

SCHEMATHESIS = shutil.which(
    "schemathesis", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(SCHEMATHESIS is None, reason="needs schemathesis"),
]

TOKEN, OTHER = "acme-token-0123456789", "other-token-0123456789"

#: What a schema cannot say: a task type's own options, that a batch has ids or is of all, what a conversation
#: ends with, and which files can be read. There what the schema allows may be refused all the same.
CONFIG = """
[[operations]]
include-operation-id = ["submitJob", "submitBatch", "streamChat", "putDocument"]
checks.positive_data_acceptance.enabled = false
"""


@pytest.fixture
def server(tmp_path, sqlite_file) -> Iterator[Served]:
    with contextlib.ExitStack() as ending:
        sim = ending.enter_context(simulated())
        broker = RestartableValkey()
        ending.callback(broker.stop)
        stack = Stack(
            tmp_path / "stack",
            broker_url=broker.url,
            database_url=None,
            providers=[provider(sim.openai_url)],
            settings={"api": {"tokens": [f"acme:{TOKEN}", f"other:{OTHER}"]}},
        )
        ending.callback(stack.close)
        stack.give_database(sqlite_file)
        stack.worker()
        yield serve(stack, token=TOKEN)


def test_a_server_does_what_its_description_says(server, tmp_path):
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    asked = subprocess.run(
        [
            *(str(SCHEMATHESIS), "--config-file", "schemathesis.toml", "run"),
            *(f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "6"),
            *("--generation-deterministic", "--no-color"),
            *("--request-timeout", "10", "--continue-on-failure", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stdout[-8_000:] + asked.stderr[-2_000:]
    assert "request-failed" not in server.process.output()
    assert "stream-failed" not in server.process.output()
