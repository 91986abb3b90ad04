"""What delivery left behind, as the broker, the providers and the kernel tell it."""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from support.simulated import Simulated
from support.stack import Stack, eventually

from llmtasks.store.tables import jobs

#: A worker with little patience for a message that nobody acknowledges: it comes back in 2 s, not in 600.
REDELIVERING = """
from llmtasks import celery_config
celery_config.broker_transport_options |= {
    "visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1
}
from llmtasks.cli import main
main()
"""


def full(*values: Any) -> Any:
    """The numbers of a case's long form."""
    return pytest.param(*values, marks=pytest.mark.chaos, id="full")


def short(*values: Any) -> Any:
    """The numbers of a case's form for every day."""
    return pytest.param(*values, id="short")


def slow(*values: Any) -> Any:
    """The numbers of a short form that takes long all the same; not for every day."""
    return pytest.param(*values, marks=pytest.mark.chaos, id="short")


def note(line: str) -> None:
    """A figure for who runs the tests with `-s`."""
    sys.stdout.write(f"\n{line}\n")


def queued(url: str, task: str = "summarize") -> int:
    """Messages of a task type that no worker has taken."""
    with redis.Redis.from_url(url) as client:
        # Kombu keeps a list for each of the broker's priorities.
        return sum(client.llen(key) for key in client.scan_iter(f"llm.{task}*", _type="list"))


def unacknowledged(url: str) -> int:
    """Messages that workers have taken and not settled."""
    with redis.Redis.from_url(url) as client:
        return client.hlen("unacked")


def settled(url: str) -> None:
    """Wait until the broker holds nothing more."""
    eventually(
        lambda: queued(url) + unacknowledged(url) == 0,
        lambda: f"all is settled: {queued(url)} queued, {unacknowledged(url)} unacknowledged",
    )


def calls_by_question(sim: Simulated) -> Counter[str]:
    """How often each question reached the provider."""
    return Counter(line["prompt_sha256"] for line in sim.log())


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found.group(1)) / 1024


def rows(stack: Stack, *columns: str, **where: Any) -> Sequence[Any]:
    """Columns of the jobs that have these values."""
    conditions = [jobs.c[name] == value for name, value in where.items()]
    with stack.database.read() as connection:
        return connection.execute(
            sa.select(*(jobs.c[name] for name in columns)).where(*conditions)
        ).all()


@contextmanager
def events(url: str) -> Iterator[Counter[str]]:
    """Counts Celery's events by type, as Flower receives them, while the block runs."""
    counts: Counter[str] = Counter()
    app = Celery("watcher", broker=url, set_as_current=False)

    def count(event: dict[str, Any]) -> None:
        counts[event["type"]] += 1

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": count})
        listening = threading.Event()
        receiver.on_consume_ready = lambda *_args, **_options: listening.set()
        thread = threading.Thread(target=receiver.capture, daemon=True)
        thread.start()
        assert listening.wait(10.0)
        try:
            yield counts
        finally:
            receiver.should_stop = True
            thread.join(10.0)
