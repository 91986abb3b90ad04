"""The rules and dashboards before a real Prometheus, which scrapes real workers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import monitoring
from support.container_files import ROOT, read_yaml
from support.stack import PATIENCE_S, eventually, provider
from support.valkey import free_port

from llmtasks.cli import VERBS

pytestmark = pytest.mark.package

#: Asked for before anything is streamed, or has a price: the simulator's models have none.
MAY_BE_EMPTY = {
    "Time to the first token",
    "Cost of the last hour",
    "Cost of the range shown",
    "Dollars per hour",
    "Dollars per job",
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Prometheus)"
)
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")


def expressions() -> list[str]:
    """Every query of every dashboard and every rule."""
    rules = [*monitoring.rules("recording.yml"), *monitoring.rules("alerts.yml")]
    return [*monitoring.queries(), *(rule["expr"] for rule in rules)]


def test_dashboards_and_rules_ask_for_metrics_and_labels_that_exist():
    known = monitoring.series()
    for rule in monitoring.rules("recording.yml"):
        sources = monitoring.names(rule["expr"])
        known[rule["record"]] = set().union(*(known[name] for name in sources))
    for query in expressions():
        names = monitoring.names(query)
        assert names, query
        assert names <= known.keys(), query
        assert monitoring.labels(query) <= set().union(*(known[name] for name in names)), query


def test_every_alert_says_what_it_is_and_what_to_do():
    for rule in monitoring.rules("alerts.yml"):
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description", "action"}, rule["alert"]
        named = re.findall(r"`llmtasks (\w+)", rule["annotations"]["action"])
        assert set(named) <= VERBS.keys(), rule["alert"]


def test_every_alert_is_tested_where_it_fires_and_where_it_does_not():
    tested: dict[str, set[bool]] = {}
    for case in read_yaml("tests/packaging/alerts_test.yml")["tests"]:
        for one in case["promql_expr_test"]:
            name = re.search(r'alertname="(\w+)"', one["expr"])[1]
            tested.setdefault(name, set()).add(bool(one["exp_samples"]))
    there = {rule["alert"] for rule in monitoring.rules("alerts.yml")}
    assert tested == {name: {True, False} for name in there}


@needs_promtool
def test_promtool_accepts_the_configuration_and_every_query(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": query}
        for number, query in enumerate(monitoring.queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    configuration = ROOT / "deploy/prometheus/prometheus.yml"
    subprocess.run(["promtool", "check", "config", configuration], check=True)
    subprocess.run(["promtool", "check", "rules", file], check=True)


@needs_promtool
def test_promtool_finds_that_alerts_fire_when_they_should_and_not_when_they_should_not():
    tests = ROOT / "tests/packaging/alerts_test.yml"
    subprocess.run(["promtool", "test", "rules", tests], check=True)


class Prometheus:
    """A real one, that looks for its targets in a file, with the rules as they are deployed."""

    def __init__(self, home: Path, targets: Path) -> None:
        import yaml

        self.url = f"http://127.0.0.1:{free_port()}"
        configured = read_yaml("deploy/prometheus/prometheus.yml")
        (job,) = configured["scrape_configs"]
        configured["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        configured["rule_files"] = [str(monitoring.RULES / n) for n in configured["rule_files"]]
        found = {"files": [str(targets)], "refresh_interval": "1s"}
        configured["scrape_configs"] = [{"job_name": job["job_name"], "file_sd_configs": [found]}]
        home.mkdir()
        file = home / "prometheus.yml"
        file.write_text(yaml.safe_dump(configured))
        self.log = home / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={home / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **parameters: str) -> Any:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query answers with."""
        found: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return found

    def value(self, query: str) -> float | None:
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else None

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10):
                return True
        except OSError:
            assert self._process.poll() is None, self.log.read_text()
            return False

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)


@pytest.fixture
def prometheus(stack, tmp_path) -> Iterator[Prometheus]:
    """Scrapes the two workers of the stack."""
    stack.configure(metrics={"port": free_port()})  # the second takes the next free one
    for _ in range(2):
        stack.worker(concurrency=4)
    targets = tmp_path / "targets.json"
    stack.inside("targets", "--out", str(targets))
    server = Prometheus(tmp_path / "prometheus", targets)
    try:
        eventually(server.ready, "Prometheus is ready")
        eventually(lambda: len(server.ask("up == 1")) == 2, targets.read_text)
        yield server
    finally:
        server.close()


@pytest.fixture
def stack(make_stack, sim):
    limits = {"requests_per_minute": 6_000, "tokens_per_minute": 6_000_000, "max_concurrency": 8}
    return make_stack(providers=[provider(sim.openai_url, **limits)])


@needs_prometheus
def test_a_real_prometheus_answers_every_panel_and_rule_with_what_workers_serve(
    prometheus, stack, sim
):
    ids = stack.documents(40)
    sim.faults({"kind": "500", "next": 1}, {"kind": "429", "next": 1, "retry_after": 0.2})
    batch = stack.submit("summarize", *ids, "there-is-no-such-document")
    assert stack.finished(batch)["completed"] == 40
    stack.finished(stack.submit("summarize", "--all"))

    def counted() -> dict[str, float | None]:
        return {
            "completed": prometheus.value('sum(llm_jobs_total{state="completed"})'),
            "hits": prometheus.value('sum(llm_cache_hits_total{result="hit"})'),
            "limited": prometheus.value('sum(llm_calls_total{outcome="RateLimitError"})'),
            "retried": prometheus.value('sum(llm_retries_total{reason="ProviderUnavailable"})'),
            "unpriced": prometheus.value('sum(llm_unpriced_calls_total{reason="price"})'),
            "workers": prometheus.value("max(llm_workers)"),
            "open": prometheus.value("sum(llm:open_jobs:max)"),
            "used": prometheus.value('sum(llm_provider_quota_used_total{dimension="requests"})'),
        }

    expected = {
        "completed": 80,
        "hits": 40,
        "limited": 1,
        "retried": 1,
        "unpriced": 40,
        "workers": 2,
        "open": 0,
        "used": len(sim.log()),
    }
    eventually(lambda: counted() == expected, lambda: f"{expected}, not {counted()}")

    def lacking() -> list[str]:
        return [
            panel["title"]
            for path in monitoring.DASHBOARDS
            for panel in monitoring.panels(path)
            if panel["title"] not in MAY_BE_EMPTY
            and not all(prometheus.ask(query) for query in monitoring.asked(panel))
        ]

    eventually(lambda: not lacking(), lambda: f"data for {lacking()}")
    for query in expressions():
        prometheus.ask(query)  # without an error, also where nothing answers it
    eventually(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, "all evaluated")
    alarmed = {rule["name"] for rule in prometheus.rules() if rule.get("alerts")}
    assert alarmed <= {"LLMTasksCostUnknown"}  # the simulator's model has no price
