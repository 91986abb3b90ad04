"""`llmtasks doctor`: what is well, what is not and what to do, soon, and never a secret."""

from __future__ import annotations

import socket
import time

import pytest
from support.stack import provider
from support.valkey import free_port

from llmtasks.errors import ConfigurationError
from llmtasks.settings import load

KEY = "sk-simulated-0123456789"


def findings(stack, code: int) -> dict[str, dict[str, str]]:
    return {one["check"]: one for one in stack.json("doctor", code=code)}


@pytest.fixture
def deaf():
    """The port of somebody who takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield listening.getsockname()[1]


def test_a_healthy_installation_has_nothing_to_mend(make_stack, sim):
    stack = make_stack(
        providers=[provider(sim.openai_url, model="sim-small", requests_per_minute=600)],
        embedded=True,
    )
    stack.worker(concurrency=3)
    found = findings(stack, code=0)
    assert [one for one in found.values() if one["status"] != "ok"] == []
    assert str(stack.config) in found["configuration"]["detail"]
    assert found["broker"]["detail"] == "embedded Valkey, runs"
    assert "for 3 jobs at once" in found["workers"]["detail"]
    assert "lists sim-small" in found["provider sim"]["detail"]
    assert KEY not in str(found)
    assert sim.log() == [], "nothing was paid to know"

    sim.faults(kind="401")
    refused = findings(stack, code=1)["provider sim"]
    assert refused["status"] == "fail"
    assert "SIMULATOR_KEY" in refused["fix"]
    assert KEY not in str(refused)


def test_before_the_first_use_nothing_fails_and_nothing_is_made(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url, model="sim-small")], embedded=True)
    found = findings(stack, code=0)
    assert found["workers"]["fix"] == "llmtasks up, or llmtasks worker"
    assert not (stack.home / "data").exists()


def test_parts_that_hang_or_are_not_there_are_named_in_time(make_stack, deaf):
    stack = make_stack(
        providers=[
            provider(f"http://127.0.0.1:{deaf}/v1", "deaf"),
            provider(f"http://127.0.0.1:{free_port()}/v1", "gone"),
            provider("http://127.0.0.1:1/v1", "keyless", api_key_env="NOT_SET"),
        ],
        embedded=True,
        settings={
            "broker": {"url": f"redis://u:sekret@127.0.0.1:{deaf}/0"},
            "redis": {"url": f"redis://u:sekret@127.0.0.1:{free_port()}/0"},
            "database": {"url": f"postgresql://u:sekret@127.0.0.1:{deaf}/d"},
        },
    )
    started = time.monotonic()
    found = findings(stack, code=1)
    # Three seconds on an idle machine; a test machine is not one. The name servers' patience is 30 s.
    assert time.monotonic() - started < 15.0
    failed = {check for check, one in found.items() if one["status"] == "fail"}
    assert failed == {
        "broker",
        "redis",
        "database",
        "provider deaf",
        "provider gone",
        "provider keyless",
    }
    assert "refused" in found["provider gone"]["detail"]
    assert "NOT_SET" in found["provider keyless"]["detail"]
    assert "sekret" not in str(found)


def test_a_database_without_a_schema_is_to_be_migrated(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)])
    stack.configure(database={"url": f"sqlite:///{stack.home}/own.sqlite3"})
    missing = findings(stack, code=1)["database"]
    assert missing["fix"] == "llmtasks migrate"
    assert not (stack.home / "own.sqlite3").exists()


def test_settings_that_cannot_be_read_are_one_line_and_exit_2(make_stack):
    stack = make_stack(providers=[], embedded=True)
    stack.config.write_text("[worker]\nconcurency = 3\n")
    done = stack.cli("doctor", code=2)
    assert "worker.concurency" in done.stdout
    with pytest.raises(ConfigurationError) as error:
        load(stack.env, stack.home)
    assert str(error.value) in done.stdout
