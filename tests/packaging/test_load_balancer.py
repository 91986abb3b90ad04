"""nginx in front of two servers, with the configuration that deploy/ has."""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid
from pathlib import Path

import httpx2
import pytest
from support.served import Served, ended, serve, text_of
from support.stack import eventually, provider
from support.valkey import free_port

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(
        shutil.which("nginx") is None, reason="nginx is not installed (Debian: nginx)"
    ),
]

ROOT = Path(__file__).parents[2]
TEXT = "The parties agree. The sun shines over the hills of the north. Nobody objects to it."


@pytest.fixture
def balanced(make_stack, sim, tmp_path):
    """Two servers, and a client of the balancer that asks them in turn."""
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        settings={
            "api": {"tokens": ["acme:acme-token-0123456789"]},
            "metrics": {"password": "m3trics"},
        },
    )
    servers = [serve(stack) for _ in range(2)]
    port = free_port()
    proxy = (
        (ROOT / "deploy/nginx/proxy.conf")
        .read_text()
        .replace("listen 8080", f"listen 127.0.0.1:{port}")
    )
    upstream = "".join(f"server {one.url.removeprefix('http://')};" for one in servers)
    for name in ("client", "proxy", "fastcgi", "uwsgi", "scgi"):
        (tmp_path / name).mkdir()
    config = tmp_path / "nginx.conf"
    temporary = "".join(
        f"{name}_{'body_' if name == 'client' else ''}temp_path {tmp_path / name};"
        for name in ("client", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/errors; events {{}}"
        f" http {{ access_log off; {temporary} upstream llmtasks {{ {upstream} keepalive 8; }} {proxy} }}"
    )
    process = subprocess.Popen(
        ["nginx", "-p", str(tmp_path), "-c", str(config), "-g", "daemon off;"]
    )
    stack.ending.callback(process.wait)
    stack.ending.callback(process.terminate)
    client = stack.ending.enter_context(
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    )
    front = Served(servers[0].process, client, "acme-token-0123456789")

    def answers() -> bool:
        try:
            return client.get("/health").status_code == 200
        except httpx2.TransportError:
            return False

    eventually(answers, "nginx answers")
    return stack, servers, front


def test_a_stream_cut_on_one_server_is_resumed_on_the_other(balanced, sim):
    stack, servers, front = balanced
    sim.latency(3.0, first_token_s=0.1)
    front.post("/documents", {"documents": [{"id": "d", "text": TEXT}]})
    stack.worker()
    body = {"document_id": "d", "task_type": "summarize", "stream": True}
    job_id = front.post("/jobs", body, 202)["job_id"]
    first = []
    with front.events("GET", f"/jobs/{job_id}/stream") as events:
        first = [next(events), next(events)]
        (victim,) = filter(_streams, servers)
        victim.process.kill()
        with pytest.raises(httpx2.TransportError):
            first += events
    rest = front.all_events(
        "GET", f"/jobs/{job_id}/stream", headers={"last-event-id": first[-1].id}
    )
    assert ended(rest)
    assert "reset" not in {one.kind for one in rest}
    assert text_of(first) + text_of(rest) == rest[-2].data["output"]


def _streams(server: Served) -> bool:
    """Whether a stream is open there: its metrics are not for the world, and here we know the way."""
    text = server.client.get("/metrics", auth=("llmtasks", "m3trics")).text
    return "llm_api_streams 1.0" in text


def test_tokens_pass_as_they_come_and_leaving_is_noticed(balanced, sim):
    _, _, front = balanced
    sim.latency(2.0, first_token_s=0.1)
    chat = {"messages": [{"role": "user", "content": f"Tell of the hills. {uuid.uuid4()}"}]}
    began = time.monotonic()
    with front.events("POST", "/chat/stream", json=chat) as events:
        next(events)
        first = time.monotonic() - began
        rest = list(events)
    assert first < (time.monotonic() - began) / 2, "nothing holds tokens back"
    assert ended(rest)
    with front.events("POST", "/chat/stream", json=chat) as events:
        next(events)
    eventually(lambda: sim.stats()["in_flight"] == 0, "the call is given up")
    assert sim.log()[-1]["status"] == 499


def test_the_operators_pages_are_not_for_the_world(balanced):
    _, _, front = balanced
    for path in ("/metrics", "/metrics/targets"):
        assert front.request("GET", path).status_code == 403
