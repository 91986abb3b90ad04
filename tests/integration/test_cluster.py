"""Workers whose fleet agrees in a Redis Cluster: they do as on one server, and outlive a node's death."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from support.cluster import Cluster
from support.stack import eventually, provider

from llmtasks.store.tables import jobs

FLEET = "llmtasks:{llm}:p:sim"


@pytest.fixture(scope="module")
def cluster():
    one = Cluster(3)
    yield one
    one.close()


@pytest.fixture
def stack(make_stack, sim, cluster):
    for node in range(3):
        with cluster.client(node) as client:
            client.flushall()
    return make_stack(
        providers=[provider(sim.openai_url, max_concurrency=25)],
        settings={
            "redis": {"url": cluster.url_of(cluster.holder(FLEET)), "cluster": True},
            # A busy machine must not look like a dead worker here.
            "delivery": {"lease_s": 30.0},
        },
    )


SEND = """
import sys
from llmtasks import add_document, process_document
add_document("The same text for everybody.", "d")
for number in range(int(sys.argv[1])):
    process_document.apply_async(("d", "summarize"), task_id=f"job-{number}")
"""


def completed(stack) -> int:
    with stack.database.read() as connection:
        return connection.scalar(
            sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == "completed")
        )


def test_two_hundred_equal_jobs_are_one_call_and_a_hundred_different_ones_a_hundred(stack, sim):
    workers = [stack.worker(concurrency=60) for _ in range(2)]
    sim.latency(2.0)
    stack.script(SEND, "200")
    eventually(lambda: completed(stack) == 200, "all are done")
    assert sim.stats()["requests"] == 1
    sim.latency(0.05)
    stack.documents(100)
    batch = stack.submit("summarize", "--all")
    assert stack.finished(batch)["completed"] == 101
    assert sim.stats()["requests"] == 101
    (status,) = stack.json("providers", inside=True)
    assert (status["state"], status["in_flight"]) == ("ok", 0)
    for worker in workers:
        assert worker.terminate() == 0
        assert "Traceback" not in worker.output()


def test_jobs_hold_while_a_node_they_need_is_away_and_go_on_when_it_is_back(stack, sim, cluster):
    fleet = cluster.holder(FLEET)
    other = next(node for node in range(3) if node != fleet)
    worker = stack.worker(concurrency=40)
    stack.documents(40)

    cluster.kill(other)
    try:
        batch = stack.submit("summarize", "--all")
        eventually(lambda: completed(stack) >= 15, "those of the other nodes are done")
    finally:
        cluster.start(other)
        cluster.await_whole()
    assert stack.finished(batch)["completed"] == 40
    assert sim.stats()["requests"] == 40

    sim.latency(1.0)
    batch = stack.submit("summarize", "--all", "--fresh", "-o", "max_words=50")
    eventually(lambda: sim.stats()["in_flight"] >= 20, "half of them are asked")
    cluster.kill(fleet)
    try:
        eventually(lambda: stack.status(batch)["completed"] >= 20, "what was asked is kept")
        eventually(lambda: "feed-failed" in worker.output(), "it is known why the others wait")
    finally:
        cluster.start(fleet)
        cluster.await_whole()
    assert stack.finished(batch)["completed"] == 40
    assert sim.stats()["requests"] == 80
