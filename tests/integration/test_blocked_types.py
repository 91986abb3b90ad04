"""While nobody can serve a task type, its jobs stay where they are, and those of others go on."""

from __future__ import annotations

import redis
import sqlalchemy as sa
from support.stack import eventually, provider

from llmtasks.store.tables import jobs

JOBS, SLOTS = 60, 4

SEND = """
import sys
from llmtasks import add_document, process_document
for number in range(int(sys.argv[2])):
    add_document(f"Text {number} of {sys.argv[1]}.", f"{sys.argv[1]}-{number}")
    process_document.delay(f"{sys.argv[1]}-{number}", sys.argv[1])
"""

#: What admission knows of the provider.
STATE = "llmtasks:{llm}:p:out"


def counted(stack):
    """Of the blocked type: jobs by state, claims, and waits."""
    state = jobs.c.state
    ours = jobs.c.task_type == "summarize"
    with stack.database.read() as connection:
        rows = connection.execute(sa.select(state, sa.func.count()).where(ours).group_by(state))
        states = {name: count for name, count in rows}  # noqa: C416 - rows are no pairs
        claims, waits = connection.execute(
            sa.select(sa.func.sum(jobs.c.fence), sa.func.sum(jobs.c.deferrals)).where(ours)
        ).one()
    return states, claims, waits


def ended(stack):
    with stack.database.read() as connection:
        query = sa.select(sa.func.count()).where(
            jobs.c.task_type == "extract", jobs.c.state == "completed"
        )
        return connection.execute(query).scalar_one()


def test_a_blocked_type_is_left_in_the_broker_until_it_can_be_served(make_stack, sim):
    stack = make_stack(
        providers=[provider(sim.openai_url, "out"), provider(sim.openai_url, "well")],
        settings={
            "tasks.summarize": {"providers": ["out"]},
            "tasks.extract": {"providers": ["well"]},
        },
    )
    broker = redis.Redis.from_url(stack.broker_url)
    sim.faults(kind="429", model="model-out", retry_after=600)
    stack.script(SEND, "summarize", str(JOBS))
    worker = stack.worker(concurrency=SLOTS)
    eventually(lambda: "queue-rests" in worker.output(), "the queue rests")

    def left_alone():
        """Every other message is back in the broker, and none is in hand: both at one moment."""
        held, left = broker.hlen("unacked"), broker.llen("llm.summarize")
        return (held, left) == (0, JOBS - counted(stack)[0].get("waiting", 0))

    eventually(left_alone, "every other message is back in the broker")

    # Also on a new connection.
    broker.client_kill_filter(_type="normal", skipme=True)
    stack.script(SEND, "extract", "3")
    eventually(lambda: ended(stack) == 3, "the other type is served")
    states, claims, waits = counted(stack)
    assert claims == waits == states["waiting"] < JOBS / 2

    sim.no_faults()
    broker.hset(STATE, "blocked", 0)
    left = JOBS - states["waiting"]
    eventually(
        lambda: counted(stack)[0].get("completed") == left,
        lambda: f"what was left is done: {counted(stack)} {worker.output()[-2000:]}",
    )
    assert counted(stack)[1:] == (JOBS, waits)
    assert worker.terminate() == 0
    broker.close()
