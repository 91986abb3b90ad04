"""Where Prometheus is told to look for workers."""

from __future__ import annotations

import pytest

from llmtasks.store.workers import WorkerRow
from llmtasks.watching import targets


def worker(url: str | None, host: str = "here") -> WorkerRow:
    return WorkerRow(
        worker_id="w",
        hostname=host,
        pid=1,
        queues=["llm.summarize"],
        concurrency=1,
        metrics_url=url,
        started_at=0.0,
        lease_until=1.0,
    )


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("http://127.0.0.1:9465/metrics", "here", "127.0.0.1:9465"),
        ("http://[::1]:9465/metrics", "here", "[::1]:9465"),
        ("http://localhost:9464/metrics", "here", "localhost:9464"),
        ("http://0.0.0.0:9464/metrics", "there", "there:9464"),
        ("http://[::]:9464/metrics", "there", "there:9464"),
        ("http://10.0.0.7:9464/metrics", "there", "10.0.0.7:9464"),
        ("http://worker.example:9464/metrics", "there", "worker.example:9464"),
    ],
)
def test_a_worker_is_looked_for_where_it_can_be_reached(url, host, target):
    assert targets([worker(url, host)], "here") == [{"targets": [target], "labels": {"host": host}}]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9464/metrics", "http://localhost:9464/", None])
def test_nobody_is_sent_to_the_loopback_of_another_host_or_to_who_serves_nothing(url):
    assert targets([worker(url, "there")], "here") == []


def test_the_processes_of_a_host_are_one_group():
    rows = [worker(f"http://127.0.0.1:{port}/metrics") for port in (9465, 9464)]
    (group,) = targets([*rows, worker(None)], "here")
    assert group["targets"] == ["127.0.0.1:9464", "127.0.0.1:9465"]
