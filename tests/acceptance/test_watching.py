"""What people watch: metrics of several processes on one host, and Flower."""

from __future__ import annotations

import base64
import json
import re
import socket
import sys
import urllib.error
import urllib.request

import pytest
from support.stack import eventually, provider
from support.valkey import free_port

from llmtasks.store import workers

PLANTED_TEXT = "marmalade-lighthouse-4711"
STATES = ("fleet", "alone", "away")


@pytest.fixture
def stack(make_stack, sim):
    return make_stack(providers=[provider(sim.openai_url)])


def metrics_of(worker) -> dict[str, float]:
    url = re.search(r"metrics=(\S+)", worker.output()).group(1)
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("llm_"):
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    return found


def test_metrics_of_several_processes_add_up(stack, sim):
    stack.configure(metrics={"port": free_port()})  # the second takes the next free one
    processes = [stack.worker(concurrency=4) for _ in range(2)]
    stack.documents(20)
    stack.finished(stack.submit("summarize", "--all"))
    stack.finished(stack.submit("summarize", "--all"))

    scraped = [metrics_of(worker) for worker in processes]

    def total(name: str) -> float:
        return sum(one.get(name, 0.0) for one in scraped)

    stats = sim.stats()
    assert total('llm_request_duration_seconds_count{model="model-sim",provider="sim"}') == 20
    assert total('llm_cache_hits_total{result="miss"}') == 20
    assert total('llm_cache_hits_total{result="hit"}') == 20
    assert total('llm_active_requests{model="model-sim"}') == 0
    status = sum(line["input_tokens"] for line in sim.log())
    assert total('llm_tokens_total{model="model-sim",type="prompt"}') == status
    assert total('llm_tokens_total{model="model-sim",type="completion"}') > 0
    assert stats["answered"] == 20
    assert total('llm_provider_quota_used_total{dimension="requests",provider="sim"}') == 20
    assert total('llm_input_token_estimate_ratio_count{model="model-sim",provider="sim"}') == 20
    assert total('llm_single_flight_total{role="led"}') == 20
    assert total('llm_unpriced_calls_total{model="model-sim",provider="sim",reason="price"}') == 20
    assert not any(name.startswith("llm_cost_usd_total") for one in scraped for name in one)
    for worker in processes:
        eventually(lambda worker=worker: metrics_of(worker).get("llm_workers"), "it has looked")
        eventually(
            lambda worker=worker: (
                metrics_of(worker).get('llm_queue_messages{queue="llm.summarize"}') == 0
            ),
            "the broker is seen",
        )
    (group,) = json.loads(stack.inside("targets").stdout)
    urls = {re.search(r"metrics=http://([^/]+)/", worker.output()).group(1) for worker in processes}
    assert set(group["targets"]) == urls
    for bound in ("0.1", "0.5", "1.0", "2.0", "5.0", "10.0", "30.0"):
        assert any(f'le="{bound}"' in name for name in scraped[0])


def test_metrics_say_how_the_providers_stand(stack, sim):
    worker = stack.worker(concurrency=2)
    stack.documents(1)

    def standing(name: str, labels: str = "") -> float | None:
        return metrics_of(worker).get(f'llm_provider_{name}{{provider="sim"{labels}}}')

    def state(name: str) -> float | None:
        return standing("state", f',state="{name}"')

    eventually(lambda: state("ok") == 1, "the provider is seen")
    assert (state("blocked"), standing("waiting")) == (0, 0)
    assert standing("effective_limit_ratio") == 1
    sim.faults(kind="429", next=1, retry_after=60)
    stack.submit("summarize", "--all", "--fresh")
    eventually(lambda: (state("ok"), state("blocked")) == (0, 1), "the pause is seen")
    assert standing("effective_limit_ratio") < 1
    assert 40 < standing("next_opening_seconds") <= 60
    assert metrics_of(worker)['llm_retries_total{reason="RateLimitError"}'] == 1


def test_the_file_of_targets_follows_the_workers(stack, tmp_path):
    file = tmp_path / "targets.json"
    writing = stack.start(
        [sys.executable, "-m", "llmtasks", "targets", "--out", str(file), "--every", "1"], "targets"
    )

    def told() -> list[str]:
        text = file.read_text() if file.exists() else "[]"
        return [target for group in json.loads(text) for target in group["targets"]]

    eventually(file.exists, writing.output)
    assert told() == []
    here = {"hostname": socket.gethostname(), "pid": 1, "queues": [], "concurrency": 1}
    url = "http://127.0.0.1:9470/metrics"
    workers.register(stack.database, "w", **here, metrics_url=url, lease_s=60.0)
    eventually(lambda: told() == ["127.0.0.1:9470"], "the new one is written")
    workers.remove(stack.database, "w")
    eventually(lambda: told() == [], "the old one is gone")
    assert [path.name for path in tmp_path.glob("*targets*")] == ["targets.json"]
    assert "--out FILE" in stack.inside("targets", "--every", "1", code=2).stderr


def test_metrics_say_who_decides_while_redis_is_away(make_stack, sim, own_valkey):
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        settings={"redis": {"url": own_valkey.url, "local_share": 0.5, "local_for_s": 60}},
    )
    worker = stack.worker(concurrency=2)

    def decides() -> dict[str, float]:
        found = metrics_of(worker)
        states = {one: found.get(f'llm_admission_state{{state="{one}"}}') for one in STATES}
        known = any(name.startswith("llm_provider_") for name in found)
        return states | {"providers are known": known}

    def only(state: str, *, known: bool):
        shown = {one: float(one == state) for one in STATES} | {"providers are known": known}
        eventually(lambda: decides() == shown, lambda: f"{state}, not {decides()}")

    only("fleet", known=True)
    own_valkey.stop()
    only("away", known=False)  # what others were granted is used up first
    only("alone", known=False)
    own_valkey.start()
    only("fleet", known=True)


def test_flower_asks_for_the_password_and_shows_a_retry_with_its_reason(stack, sim):
    port = free_port()
    stack.configure(flower={"user": "ops", "password": "open-sesame", "port": port})
    flower = stack.start([sys.executable, "-m", "celery", "-A", "workers.app", "flower"], "flower")

    def get(path: str, password: str | None = "open-sesame"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
        if password:
            token = base64.b64encode(f"ops:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def answers() -> bool:
        try:
            get("/tasks")
        except OSError:
            return False
        return True

    eventually(answers, lambda: f"Flower answers: {flower.output()}")
    for wrong in (None, "wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get("/tasks", wrong)

    stack.worker(concurrency=2)
    stack.script(f"from llmtasks import add_document; add_document({PLANTED_TEXT!r}, 'd')")
    sim.faults(kind="429", next=1, retry_after=6)
    stack.script(
        """
        from llmtasks import process_document
        process_document.apply_async(("d", "summarize"), task_id="seen")
        """
    )

    def state() -> tuple[str, str]:
        task = json.loads(get("/api/tasks")).get("seen", {})
        return task.get("state", ""), str(task.get("exception"))

    state_and_reason = eventually(lambda: state() if state()[0] == "RETRY" else None, "a retry")
    assert "RateLimitError" in state_and_reason[1]
    eventually(lambda: state()[0] == "SUCCESS", "the job is done")
    assert PLANTED_TEXT not in get("/api/tasks")
    assert "open-sesame" not in flower.output()
